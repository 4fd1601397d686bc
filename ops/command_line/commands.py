"""The command line: every command with its arguments.

A command is a function here, which adds its arguments and names the function of the project that does the work. It runs
only for the command that was typed, so it may import the module that owns a default or a list of choices.
"""

from __future__ import annotations

from typing import Any, get_args

from ops.command_line.demo_networks import add_networks
from ops.command_line.parser import (
    RECIPE,
    Parser,
    add_overrides,
    add_plugin_option,
    add_recipe,
    calls,
    command,
    goes_on,
)


@command(
    "run",
    help="train a teacher, a student alone and the same student distilled, in a few minutes",
    description="Trains a small teacher, a student alone and the same student distilled, each with 2 workers, on 5,000 "
    "real handwritten digits, or on your own image folder; ends with a table.",
)
def demo(parser: Parser) -> None:
    parser.add_place(
        "--data", metavar="FOLDER", help="your image folder, FOLDER/train/<class>/ and FOLDER/val/<class>/"
    )
    add_networks(parser)
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds to train the two students with (default: %(default)s)"
    )
    parser.add_place(
        "--output", default=f"{output_dir()}/demo", metavar="DIR", help="output folder (default: %(default)s)"
    )
    add_overrides(parser, "fields to override in all three recipes, such as train.epochs=5")
    parser.set_defaults(function=calls("ops.demo.run:demo"))
    goes_on(parser)


@command(
    "run",
    help="train a recipe, or resume it",
    description="Trains a recipe on this machine, or on the Ray cluster that RAY_ADDRESS names. The recipe's name is "
    "the run's identity: running the same command again resumes it.",
)
def train(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="do not train: recompute this step of the run (1 is the first) from the last checkpoint before it, and "
        "show which numbers are not finite",
    )
    parser.set_defaults(function=calls("ops.train:train", require=RECIPE))
    goes_on(parser)


@command(
    "look",
    help="print a resolved recipe with its networks' shapes and cost; train nothing",
    description="Prints the steps, hours and bytes that a recipe takes; the parameters, cost per image, and taps with "
    "their shapes of both networks; and the resolved recipe.",
)
def show(parser: Parser) -> None:
    parser.add_place(
        "--picture",
        metavar="FILE",
        help="instead of printing, save sample views of training images as a PNG or JPEG",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="how long to time training steps; 0: do not time, show shapes only (default: %(default)s)",
    )
    add_recipe(parser)
    parser.set_defaults(function=calls("ops.show:show", require=RECIPE))


@command(
    "look",
    help="explain every field of a recipe: type, default, meaning",
    description="Shows the fields of a section (views, train, cache, sweep, ...) or of a term (kd, wttm, ...), or one "
    "field (views.size); without NAME, lists all names.",
    epilog="In an editor: python -m ops fields --json-schema > recipe.schema.json, then begin a recipe with the line "
    "`# yaml-language-server: $schema=recipe.schema.json` (VS Code's YAML extension, and every editor with "
    "yaml-language-server): keys are completed and checked, and shown with their meaning.",
)
def fields(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a section, a term, or a field")
    add_plugin_option(parser)
    parser.add_argument(
        "--json-schema",
        dest="as_json_schema",
        action="store_true",
        help="print the JSON schema of recipes, for editors",
    )
    parser.set_defaults(function=calls("ops.fields:fields"))


@command(
    "look",
    help="score the teacher's layers and recommend which to distil",
    description="Scores layers of the recipe's teacher by Q = S + sqrt(I E) on a class-balanced sample of the training "
    "images; prints and plots the scores and writes the recommended pairs of layers.",
)
def layers(parser: Parser) -> None:
    from cluster.sweep.axes import Pairings
    from kdcore.quality.collect import MAX_ELEMENTS
    from kdcore.quality.score import INFORMATION_SCALE, SEPARATION, InformationScale, Separation

    images: int = Pairings.model_fields["images"].default
    add_recipe(parser)
    parser.add_argument(
        "--taps", nargs="+", metavar="TAP", help="taps of the teacher, in depth order (default: its blocks)"
    )
    parser.add_argument(
        "--student-taps", nargs="+", metavar="TAP", help="taps of the student, in depth order (default: its blocks)"
    )
    parser.add_argument(
        "--pairs", dest="num_pairs", type=int, metavar="N", help="number of pairs to recommend (default: up to 4)"
    )
    parser.add_argument(
        "--images",
        dest="num_images",
        type=int,
        default=images,
        metavar="N",
        help="number of training images to sample (%(default)s)",
    )
    parser.add_argument(
        "--scale",
        choices=get_args(InformationScale),
        default=INFORMATION_SCALE,
        help="log scale of the information part (%(default)s)",
    )
    parser.add_argument(
        "--separation",
        choices=get_args(Separation),
        default=SEPARATION,
        help="how to measure class separation: over pairs of different images, or, as the official code does, also of "
        "each image with itself (%(default)s)",
    )
    parser.add_argument(
        "--max-elements",
        type=int,
        default=MAX_ELEMENTS,
        metavar="N",
        help="pool maps with more elements than this (%(default)s)",
    )
    parser.add_place(
        "--output",
        dest="output_dir",
        default=f"{output_dir()}/layers",
        metavar="DIR",
        help="output folder (%(default)s)",
    )
    parser.set_defaults(function=calls("ops.layers:layers", require=RECIPE))


@command(
    "look",
    help="write one HTML page about an experiment: table, curves, sweeps, seed noise",
    description="Writes one self-contained HTML page about an experiment in MLflow: recipes with mean and spread over "
    "seeds, gain, size and cost, learning curves, sweeps, and every run with its link.",
)
def review(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="its name in MLflow")
    _store(parser)
    parser.add_place("-o", "--output", metavar="FILE", help="the page (default: EXPERIMENT-review.html)")
    parser.add_argument("--compare", nargs=2, metavar="RUN", help="show these two runs side by side")
    parser.add_argument(
        "--metric", help="the score to compare (default: val/top1, or val/mAP for images with several labels)"
    )
    parser.add_argument(
        "--studied",
        nargs="+",
        metavar="FIELD",
        help="the fields under study: those in which recipes are meant to differ (default: the method)",
    )
    parser.set_defaults(function=calls("ops.review.page:review"))


@command(
    "look",
    help="serve MLflow's web page on 127.0.0.1",
    description="Serves the MLflow store of an output folder on 127.0.0.1, after delivering what runs stored while "
    "their server was unreachable. Ctrl-C ends it.",
)
def ui(parser: Parser) -> None:
    _store(parser)
    parser.add_argument("--port", type=int, default=5000, help="TCP port (default: %(default)s)")
    parser.set_defaults(function=calls("ops.ui:ui"))


@command(
    "keep",
    help="compute and store teacher outputs: build, verify, info, plan, copy",
    description="Stores a recipe's teacher outputs in Arrow shards, as its 'cache:' section says. To train from the "
    "cache, set teacher.source=cache.",
)
def cache(parser: Parser) -> None:
    actions: Any = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build the recipe's cache, or resume building it, on the whole cluster")
    verify = actions.add_parser("verify", help="check every byte, and recompute some rows")
    info = actions.add_parser("info", help="show what a cache holds, and which recipes can use it")
    plan = actions.add_parser("plan", help="measure on this machine whether a cache is worth it")
    copy = actions.add_parser("copy", help="copy a finished cache to object storage or to another folder")
    for action in (build, verify, plan):
        add_recipe(action)
    copy.add_place("folder", metavar="DIR", help="the cache's folder")
    copy.add_place("location", metavar="URI", help="the destination, such as s3://bucket/folder")
    verify.add_argument(
        "--rows",
        dest="num_rows",
        type=int,
        default=256,
        help="rows to recompute in each part (default: %(default)s)",
    )
    plan.add_argument("--seconds", type=float, default=4.0, help="length of each measurement (default: %(default)s)")
    info.add_place("folder", metavar="DIR", help="the cache's folder or URI")
    build.set_defaults(function=calls("ops.cache:build_cache", require=RECIPE))
    goes_on(build, "builds what is missing")
    verify.set_defaults(function=calls("ops.cache:verify_cache", require=RECIPE))
    plan.set_defaults(function=calls("ops.cache:plan_cache", require=RECIPE))
    info.set_defaults(function=calls("ops.cache:show_cache"))
    copy.set_defaults(function=calls("ops.cache:copy_cache"))


@command(
    "keep",
    help="send MLflow what runs stored while its server was unreachable",
    description="Runs go on when their MLflow server is unreachable and store what it missed in their folders. This "
    "sends it, once and in order. `ui` and `review` do the same for the folder that they show.",
)
def deliver(parser: Parser) -> None:
    parser.add_place(
        "folder", metavar="DIR", nargs="?", default=output_dir(), help="the output folder (default: %(default)s)"
    )
    parser.set_defaults(function=calls("ops.ui:deliver"))


@command(
    "prepare",
    help="list the built-in recipes with their expected results, or print one",
    description="Lists the named recipes with the published result of each; given the full NAME, prints that recipe "
    "as a complete YAML file, each field with its meaning, to copy and edit.",
)
def recipes(parser: Parser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the name of a recipe, or a part that several names share"
    )
    parser.set_defaults(function=calls("ops.catalog:recipes"))


@command(
    "prepare",
    help="handle sources of images: show one, pack it, verify a pack",
    description="A source of images is a folder or URI that holds each split as class folders, WebDataset tars, "
    "Parquet with an image column, a CSV of path and label, or a pack: Arrow shards, which `data pack` makes of them.",
)
def data(parser: Parser) -> None:
    from ops.command_line.data import add_data_actions

    add_data_actions(parser, f"{output_dir()}/index")


@command(
    "prepare",
    help="report what this machine has, what is missing, and how to fix it",
    description="Checks GPUs, decoders, Ray, the MLflow store, disks and cores, and says how to fix what is wrong.",
)
def doctor(parser: Parser) -> None:
    parser.add_place(
        "--output", dest="output_dir", default=output_dir(), metavar="DIR", help="the runs' folder (%(default)s)"
    )
    parser.set_defaults(function=calls("ops.doctor.report:doctor"))


def output_dir() -> str:
    """Return the folder of runs whose recipe names none."""
    from cluster.recipe.config import RunConfig

    default: str = RunConfig.model_fields["output_dir"].default
    return default


def _store(parser: Parser) -> None:
    default = f"MLFLOW_TRACKING_URI, or {output_dir()}"
    parser.add_place("--store", metavar="DIR|URI", help=f"an output folder or MLflow's URI (default: {default})")

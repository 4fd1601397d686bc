"""What may be typed: every command with its arguments.

A command is a function here, which adds its arguments and names the function of the project that does the work. It runs
only for the command that was typed, so that it may import the module that owns a default or a list of choices.
"""

from __future__ import annotations

from typing import Any, get_args

from ops.demo_arguments import NETWORKS, add_networks
from ops.parser import RECIPE, Parser, add_overrides, add_plugin_option, add_recipe, calls, command, goes_on


@command(
    "run",
    help="teacher, student alone, student distilled: the whole path in a few minutes",
    description="Trains a small teacher, a student alone and the same student distilled, each with 2 workers, on 5,000 "
    "real handwritten digits, or on your own image folder; ends with a table.",
)
def demo(parser: Parser) -> None:
    parser.add_argument(
        "--data", metavar="FOLDER", help="your image folder, FOLDER/train/<class>/ and FOLDER/val/<class>/"
    )
    add_networks(parser)
    parser.add_argument("--seeds", type=int, default=1, help="how often the two students are trained (%(default)s)")
    parser.add_argument("--output", default=f"{output_dir()}/demo", metavar="DIR", help="where all goes (%(default)s)")
    add_overrides(parser, "fields of all three recipes, such as train.epochs=5")
    parser.set_defaults(function=calls("ops.demo:demo", "data", *NETWORKS, "seeds", "output", "overrides"))
    goes_on(parser)


@command(
    "run",
    help="train one recipe to its end, or continue it",
    description="Trains a recipe on this machine, or on the Ray cluster that RAY_ADDRESS names. The recipe's name is "
    "the run's identity: the same command again continues it.",
)
def train(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="train nothing: compute this step of the run (1 is the first) once more, from the last checkpoint before "
        "it, and show which numbers are not finite",
    )
    parser.set_defaults(function=calls("ops.train:train", "recipe", "overrides", "replay", require=RECIPE))
    goes_on(parser)


@command(
    "look",
    help="a recipe resolved, with the networks' shapes and cost; trains nothing",
    description="Prints the steps, hours and bytes that a recipe takes, of both networks the parameters, the cost per "
    "image and the taps with their sizes, and the resolved recipe.",
)
def show(parser: Parser) -> None:
    parser.add_argument(
        "--picture", metavar="FILE", help="instead, save sample views of some training images as a PNG or JPEG"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="of the measurement of its steps; 0 for none: shapes alone (default: %(default)s)",
    )
    add_recipe(parser)
    parser.set_defaults(function=calls("ops.show:show", "recipe", "overrides", "picture", "seconds", require=RECIPE))


@command(
    "look",
    help="every field of a recipe: type, default, meaning",
    description="Shows the fields of a section (views, train, cache, sweep, ...) or of a term (kd, wttm, ...), or one "
    "field (views.size); without a NAME, the names that there are.",
    epilog="In an editor: python -m ops fields --json-schema > recipe.schema.json, then begin a recipe with the line "
    "`# yaml-language-server: $schema=recipe.schema.json` (VS Code's YAML extension, and every editor with "
    "yaml-language-server): keys are completed and checked, and shown with their meaning.",
)
def fields(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a section, a term, or a field")
    add_plugin_option(parser)
    parser.add_argument("--json-schema", action="store_true", help="print the JSON schema of recipes, for editors")
    parser.set_defaults(function=calls("ops.fields:fields", "name", "json_schema"))


@command(
    "look",
    help="how much each layer of the teacher has to teach, and which to distil",
    description="Scores layers of the recipe's teacher by Q = S + sqrt(I E) on a class-balanced sample of the training "
    "images; prints and plots the scores and writes the pairing they recommend.",
)
def layers(parser: Parser) -> None:
    from cluster.sweep.config import Pairings
    from kdcore.quality.collect import MAX_ELEMENTS
    from kdcore.quality.score import INFORMATION_SCALE, SEPARATION, InformationScale, Separation

    images: int = Pairings.model_fields["images"].default
    add_recipe(parser)
    parser.add_argument("--taps", nargs="+", metavar="TAP", help="of the teacher, in depth order (default: its blocks)")
    parser.add_argument("--student-taps", nargs="+", metavar="TAP", help="in depth order (default: its blocks)")
    parser.add_argument("--pairs", type=int, metavar="N", help="how many to recommend (default: up to 4)")
    parser.add_argument("--images", type=int, default=images, metavar="N", help="size of the sample (%(default)s)")
    parser.add_argument(
        "--scale", choices=get_args(InformationScale), default=INFORMATION_SCALE, help="of information (%(default)s)"
    )
    parser.add_argument(
        "--separation",
        choices=get_args(Separation),
        default=SEPARATION,
        help="of a class from the others: over its pairs of images, or with each image beside itself (%(default)s)",
    )
    parser.add_argument(
        "--max-elements", type=int, default=MAX_ELEMENTS, metavar="N", help="pool larger maps (%(default)s)"
    )
    parser.add_argument("--output", default=f"{output_dir()}/layers", metavar="DIR", help="where it goes (%(default)s)")
    names = ("recipe", "overrides", "taps", "student_taps", "pairs", "images", "scale", "separation", "max_elements")
    parser.set_defaults(function=calls("ops.layers:layers", *names, "output", require=RECIPE))


@command(
    "look",
    help="an experiment as one page: table, curves, sweeps, what is noise",
    description="Writes one HTML page from what MLflow holds of an experiment. It needs no network: recipes with mean "
    "and spread over seeds, gain, size and cost, learning curves, sweeps, and every run with its link.",
)
def review(parser: Parser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="its name in MLflow")
    _store(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="the page (default: EXPERIMENT-review.html)")
    parser.add_argument("--compare", nargs=2, metavar="RUN", help="two runs, side by side")
    parser.add_argument("--metric", help="the score (default: val/top1, or val/mAP where images have several labels)")
    parser.add_argument(
        "--studied", nargs="+", metavar="FIELD", help="what recipes are meant to differ in (default: the method)"
    )
    names = ("experiment", "store", "output", "compare", "metric", "studied")
    parser.set_defaults(function=calls("ops.review.page:review", *names))


@command(
    "look",
    help="MLflow's page on this machine's loopback address",
    description="Serves the MLflow store of an output folder at 127.0.0.1, after delivering what runs have kept back "
    "while their server was away. Ctrl-C ends it.",
)
def ui(parser: Parser) -> None:
    _store(parser)
    parser.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    parser.set_defaults(function=calls("ops.ui:ui", "store", "port"))


@command(
    "keep",
    help="teacher outputs computed once: build, verify, info, plan, copy",
    description="A recipe's teacher outputs in Arrow shards, as its 'cache:' section says. Train from a cache with "
    "teacher.source=cache.",
)
def cache(parser: Parser) -> None:
    actions: Any = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="fill the recipe's cache, or go on filling it, on the whole cluster")
    verify = actions.add_parser("verify", help="check every byte, and compute some rows anew")
    info = actions.add_parser("info", help="what a cache holds, and which recipes it can serve")
    plan = actions.add_parser("plan", help="measure this machine: is a cache worth it?")
    copy = actions.add_parser("copy", help="put a finished cache into object storage, or into another folder")
    for action in (build, verify, plan):
        add_recipe(action)
    copy.add_argument("folder", metavar="DIR", help="the cache's folder")
    copy.add_argument("location", metavar="URI", help="such as s3://bucket/folder")
    verify.add_argument("--rows", type=int, default=256, help="how many of each part (default: %(default)s)")
    plan.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    info.add_argument("folder", metavar="DIR", help="the cache's folder or URI")
    build.set_defaults(function=calls("ops.cache:build_cache", "recipe", "overrides", require=RECIPE))
    goes_on(build, "goes on with what is missing")
    verify.set_defaults(function=calls("ops.cache:verify_cache", "recipe", "overrides", "rows", require=RECIPE))
    plan.set_defaults(function=calls("ops.cache:plan_cache", "recipe", "overrides", "seconds", require=RECIPE))
    info.set_defaults(function=calls("ops.cache:show_cache", "folder"))
    copy.set_defaults(function=calls("ops.cache:copy_cache", "folder", "location"))


@command(
    "keep",
    help="send to MLflow what runs have kept while its server was away",
    description="Runs go on without their MLflow server; what it has missed lies in their folders. This sends it, in "
    "order and once. `ui` and `review` do so too for the folder that they look at.",
)
def deliver(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", nargs="?", default=output_dir(), help="(default: %(default)s)")
    parser.set_defaults(function=calls("ops.ui:deliver", "folder"))


@command(
    "prepare",
    help="the recipes that come with the project, with what to expect of each",
    description="Lists the named recipes with the published result of each; given a whole NAME, prints that recipe as "
    "a complete YAML file, each field with its meaning, to copy and edit.",
)
def recipes(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a recipe's name, or a part of several")
    parser.set_defaults(function=calls("ops.catalog:recipes", "name"))


@command(
    "prepare",
    help="images from anywhere: show what a source holds, pack it, verify a pack",
    description="A source of images is a folder or URI that holds each split as class folders, WebDataset tars, "
    "Parquet with an image column, a CSV of path and label, or a pack: Arrow shards, which `data pack` makes of them.",
)
def data(parser: Parser) -> None:
    from ops.data_arguments import add_data_actions

    add_data_actions(parser, f"{output_dir()}/index")


@command(
    "prepare",
    help="what this machine has, and what is missing",
    description="Looks at GPUs, decoders, Ray, the MLflow store, disks and cores, and names the remedies.",
)
def doctor(parser: Parser) -> None:
    parser.add_argument("--output", default=output_dir(), metavar="DIR", help="the runs' folder (%(default)s)")
    parser.set_defaults(function=calls("ops.doctor:doctor", "output"))


def output_dir() -> str:
    """Return where runs lie if their recipe does not say it."""
    from cluster.config import RunConfig

    default: str = RunConfig.model_fields["output_dir"].default
    return default


def _store(parser: Parser) -> None:
    default = f"MLFLOW_TRACKING_URI, or {output_dir()}"
    parser.add_argument("--store", metavar="DIR|URI", help=f"an output folder or MLflow's URI (default: {default})")

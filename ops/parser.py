"""What may be typed: the commands and their arguments. Light on purpose: --help must not wait for torch and Ray."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from typing import Any

EPILOG = "exit status: 0 done; 1 a run failed; 2 something in the request is wrong, and the one line says what to do"

Function = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """The parser; `args.function(args)` of what it parses does the work and gives the exit status."""
    parser = Parser(prog="python -m ops", description="Distils big image classifiers into small ones.", epilog=EPILOG)
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _demo,
        _train,
        _evaluate,
        _export,
        _review,
        _ui,
        _deliver,
        _show,
        _layers,
        _sweep,
        _recipes,
        _fields,
        _data,
        _cache,
        _submit,
        _doctor,
    ):
        add(commands)
    return parser


class Parser(argparse.ArgumentParser):
    """Takes key=value before and after options: argparse itself has done with positional arguments at the first one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, rest = self.parse_known_args(args, namespace)
        unknown = [word for word in rest if word.startswith("-") or "=" not in word]
        if unknown or (rest and not hasattr(parsed, "overrides")):
            self.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
        if rest:
            parsed.overrides = [*parsed.overrides, *rest]
        return parsed


def calls(function: str, *names: str) -> Function:
    """What calls `module:function` with the named arguments; the module is imported only then."""
    module, _, name = function.partition(":")

    def call(args: argparse.Namespace) -> int:
        return getattr(importlib.import_module(module), name)(*(getattr(args, argument) for argument in names))

    return call


def _demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="teacher, student alone, student distilled: the whole path in a few minutes",
        description="Trains a small teacher, a student alone and the same student distilled, each with 2 workers, on "
        "5,000 real handwritten digits, or on your own image folder; ends with a table.",
    )
    demo.add_argument(
        "--data", metavar="FOLDER", help="your image folder, FOLDER/train/<class>/ and FOLDER/val/<class>/"
    )
    demo.add_argument("--teacher", metavar="NAME", help="a timm model with pretrained weights, for your own data")
    demo.add_argument("--seeds", type=int, default=1, help="how often the two students are trained (default: 1)")
    demo.add_argument("--output", default="outputs/demo", metavar="DIR", help="where everything goes (%(default)s)")
    demo.add_argument(
        "overrides", nargs="*", metavar="key=value", help="fields of all three recipes, such as train.epochs=5"
    )
    demo.set_defaults(function=calls("ops.demo:demo", "data", "teacher", "seeds", "output", "overrides"))


def _train(commands: Any) -> None:
    train = commands.add_parser(
        "train",
        help="train one recipe to its end, or continue it",
        description="Trains a recipe on this machine, or on the Ray cluster that RAY_ADDRESS names. The recipe's name "
        "is the run's identity: the same command again continues it.",
    )
    _recipe(train)
    train.add_argument(
        "--replay",
        type=int,
        metavar="STEP",
        help="train nothing: compute this step of the run (1 is the first) once more, from the last checkpoint before "
        "it, and show which numbers are not finite",
    )
    train.set_defaults(function=calls("ops.train:train", "recipe", "overrides", "replay"))


def _evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="how a student answers: accuracy, closeness to its teacher, calibration, classes",
        description="Evaluates on every image once: top-1, top-5, agreement with the teacher, KL, calibration, a table "
        "by class, the worst confusions, and the alignment (CKA) of the tapped layers. RUN is a run's folder, a file "
        "of weights, or a recipe (its teacher is evaluated). Results go beside it and onto the run's page in MLflow.",
    )
    evaluate.add_argument("run", metavar="RUN", help="outputs/my-run, weights.safetensors, or a recipe")
    evaluate.add_argument("--recipe", metavar="RECIPE", help="how a file of weights is built, where none is beside it")
    evaluate.add_argument("--data", metavar="FOLDER", help="other images: FOLDER/<class>/ (default: the recipe's)")
    evaluate.add_argument(
        "--variant", choices=("v2", "real", "a", "r", "sketch"), help="FOLDER is this test set of ImageNet"
    )
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as scaling.num_workers=0")
    evaluate.set_defaults(function=calls("ops.evaluate:evaluate", "run", "recipe", "data", "variant", "overrides"))


def _export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="a run's student as files for timm, torch and ONNX, with a model card",
        description="Writes the student as safetensors (timm), torch.export and ONNX, checks each on validation images "
        "against the trained network, writes a model card, and registers the model in MLflow.",
    )
    export.add_argument("run", metavar="RUN", help="the folder of a finished run")
    export.add_argument("-o", "--output", required=True, metavar="DIR", help="where the files go")
    export.add_argument("--images", type=int, default=256, metavar="N", help="for the checks (default: %(default)s)")
    export.add_argument("--name", help="in the registry (default: the student's and the data's)")
    export.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=FOLDER")
    export.set_defaults(function=calls("ops.export:export", "run", "output", "images", "name", "overrides"))


def _review(commands: Any) -> None:
    review = commands.add_parser(
        "review",
        help="an experiment as one page: table, curves, sweeps, what is noise",
        description="Writes one HTML page from what MLflow holds of an experiment. It needs no network: recipes with "
        "mean and spread over seeds, gain, size and cost, learning curves, sweeps, and every run with its link.",
    )
    review.add_argument("experiment", metavar="EXPERIMENT", help="its name in MLflow")
    _store(review)
    review.add_argument("-o", "--output", metavar="FILE", help="the page (default: EXPERIMENT-review.html)")
    review.add_argument("--compare", nargs=2, metavar="RUN", help="two runs, side by side")
    review.add_argument("--metric", default="val/top1", help="the score (default: %(default)s)")
    review.add_argument(
        "--studied", nargs="+", metavar="FIELD", help="what recipes are meant to differ in (default: the method)"
    )
    names = ("experiment", "store", "output", "compare", "metric", "studied")
    review.set_defaults(function=calls("ops.review.page:review", *names))


def _ui(commands: Any) -> None:
    ui = commands.add_parser(
        "ui",
        help="MLflow's page on this machine's loopback address",
        description="Serves the MLflow store of an output folder at 127.0.0.1, after delivering what runs have kept "
        "back while their server was away. Ctrl-C ends it.",
    )
    _store(ui)
    ui.add_argument("--port", type=int, default=5000, help="(default: %(default)s)")
    ui.set_defaults(function=calls("ops.ui:ui", "store", "port"))


def _deliver(commands: Any) -> None:
    deliver = commands.add_parser(
        "deliver",
        help="send to MLflow what runs have kept while its server was away",
        description="Runs go on without their MLflow server; what it has missed lies in their folders. This sends it, "
        "in order and once. `ui` and `review` do so too for the folder that they look at.",
    )
    deliver.add_argument("folder", metavar="DIR", nargs="?", default="outputs", help="(default: %(default)s)")
    deliver.set_defaults(function=calls("ops.ui:deliver", "folder"))


def _show(commands: Any) -> None:
    show = commands.add_parser(
        "show",
        help="a recipe resolved, with the networks' shapes and cost; trains nothing",
        description="Prints the resolved recipe, what the method needs, and of both networks the parameters, the cost "
        "per image and the taps with their sizes.",
    )
    _recipe(show)
    show.set_defaults(function=calls("ops.show:show", "recipe", "overrides"))


def _layers(commands: Any) -> None:
    layers = commands.add_parser(
        "layers",
        help="how much each layer of the teacher has to teach, and which to distil",
        description="Scores layers of the recipe's teacher by Q = S + sqrt(I E) on a class-balanced sample of the "
        "training images; prints and plots the scores and writes the pairing they recommend.",
    )
    _recipe(layers)
    layers.add_argument("--taps", nargs="+", metavar="TAP", help="of the teacher, in depth order (default: its blocks)")
    layers.add_argument("--student-taps", nargs="+", metavar="TAP", help="in depth order (default: its blocks)")
    layers.add_argument("--pairs", type=int, metavar="N", help="how many to recommend (default: up to 4)")
    layers.add_argument("--images", type=int, default=5000, metavar="N", help="size of the sample (%(default)s)")
    layers.add_argument("--scale", choices=("log5", "log_ed"), default="log5", help="of the information (%(default)s)")
    layers.add_argument(
        "--separation",
        choices=("pairs", "official"),
        default="pairs",
        help="of a class with others: over its pairs of images, or each image with itself too (%(default)s)",
    )
    layers.add_argument("--max-elements", type=int, default=262144, metavar="N", help="pool larger maps (%(default)s)")
    layers.add_argument("--output", default="outputs/layers", metavar="DIR", help="where it is written (%(default)s)")
    layers.set_defaults(function=_run_layers)


def _sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="many runs of a recipe over one cache: temperatures, weights, layers, any field",
        description="Searches the fields of a recipe that SPACE.yaml names, by grid, at random or with TPE; runs that "
        "fall behind are stopped early. All runs read one cache of teacher outputs, built first. The same command "
        "again goes on with a sweep that was interrupted.",
    )
    sweep.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `recipes` lists, such as kd")
    sweep.add_argument("--space", required=True, metavar="SPACE.yaml", help="what is searched, and how")
    sweep.add_argument("--concurrent", type=int, metavar="N", help="runs at a time (default: as many as fit)")
    sweep.add_argument("--plan", action="store_true", help="only show what would be run, and what it would cost")
    sweep.add_argument("overrides", nargs="*", metavar="key=value", help="fields to set, such as train.epochs=5")
    sweep.set_defaults(function=calls("ops.sweep.command:sweep", "recipe", "overrides", "space", "concurrent", "plan"))


def _recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="the recipes that come with the project, with what to expect of each",
        description="Lists the named recipes with the published result of each; given a whole NAME, prints that recipe "
        "as a complete YAML file with its manual, to copy and edit.",
    )
    recipes.add_argument("name", metavar="NAME", nargs="?", help="a recipe's name, or a part of several")
    recipes.set_defaults(function=calls("ops.catalog:recipes", "name"))


def _fields(commands: Any) -> None:
    fields = commands.add_parser(
        "fields",
        help="every field of a recipe: type, default, meaning",
        description="Shows the fields of a section (views, train, cache, sweep, ...) or of a term (kd, wttm, ...), or "
        "one field (views.size); without a NAME, the names that there are.",
        epilog="In an editor: python -m ops fields --json-schema > recipe.schema.json, then begin a recipe with the "
        "line `# yaml-language-server: $schema=recipe.schema.json` (VS Code's YAML extension, and every editor with "
        "yaml-language-server): keys are completed and checked, and shown with their meaning.",
    )
    fields.add_argument("name", metavar="NAME", nargs="?", help="a section, a term, or a field")
    fields.add_argument("--json-schema", action="store_true", help="print the JSON schema of recipes, for editors")
    fields.set_defaults(function=calls("ops.fields:fields", "name", "json_schema"))


def _data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="turn a published data set into an image folder",
        description="Unpacks CIFAR-100 into the image folder that its recipes read: from Parquet files "
        "(train-*.parquet and test-*.parquet, with columns img and fine_label), or from the authors' cifar-100-python "
        "folder, whose pickles are opened only with the published checksums.",
    )
    data.add_argument("name", choices=["cifar100"])
    data.add_argument("--from", dest="source", required=True, metavar="DIR", help="the folder of either")
    data.add_argument("--to", default="data/cifar100", metavar="DIR", help="the image folder to write (%(default)s)")
    data.set_defaults(function=calls("ops.cifar_data:unpack", "source", "to"))


def _cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache",
        help="teacher outputs computed once: build, verify, info, plan, copy",
        description="A recipe's teacher outputs in Arrow shards, as its 'cache:' section says. Train from a cache with "
        "teacher.source=cache.",
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="fill the recipe's cache, or go on filling it, on the whole cluster")
    verify = actions.add_parser("verify", help="check every byte, and compute some rows anew")
    info = actions.add_parser("info", help="what a cache holds, and which recipes it can serve")
    plan = actions.add_parser("plan", help="measure this machine: is a cache worth it?")
    copy = actions.add_parser("copy", help="put a finished cache into object storage, or into another folder")
    for action in (build, verify, plan):
        _recipe(action)
    copy.add_argument("folder", metavar="DIR", help="the cache's folder")
    copy.add_argument("location", metavar="URI", help="such as s3://bucket/folder")
    verify.add_argument("--rows", type=int, default=256, help="how many of each part (default: %(default)s)")
    plan.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    info.add_argument("folder", metavar="DIR", help="the cache's folder or URI")
    build.set_defaults(function=calls("ops.cache:build_cache", "recipe", "overrides"))
    verify.set_defaults(function=calls("ops.cache:verify_cache", "recipe", "overrides", "rows"))
    plan.set_defaults(function=calls("ops.cache:plan_cache", "recipe", "overrides", "seconds"))
    info.set_defaults(function=calls("ops.cache:show_cache", "folder"))
    copy.set_defaults(function=calls("ops.cache:copy_cache", "folder", "location"))


def _submit(commands: Any) -> None:
    submit = commands.add_parser(
        "submit",
        help="run one of these commands as a job on a Ray cluster, and follow it",
        description="Sends this tree (without data, outputs and environment) and the command to the cluster, shows the "
        "job's log and ends with its exit status. Ctrl-C leaves the job running.",
    )
    submit.add_argument("--address", required=True, metavar="URL", help="the head's dashboard, http://HEAD:8265")
    submit.add_argument("--token-file", metavar="FILE", help="the cluster's token (default: where Ray looks for it)")
    submit.add_argument("job", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="such as: train RECIPE key=value")
    submit.set_defaults(function=calls("ops.submit:submit", "address", "token_file", "job"))


def _doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="what this machine has, and what is missing",
        description="Looks at GPUs, decoders, Ray, the MLflow store, disks and cores, and names the remedies.",
    )
    doctor.add_argument(
        "--output", default="outputs", metavar="DIR", help="the folder that runs would use (%(default)s)"
    )
    doctor.set_defaults(function=calls("ops.doctor:doctor", "output"))


def _store(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store", metavar="DIR|URI", help="an output folder or MLflow's URI (default: MLFLOW_TRACKING_URI, or outputs)"
    )


def _recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `recipes` lists, such as kd")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="fields to set, such as train.epochs=5")


def _run_layers(args: argparse.Namespace) -> int:
    from ops.layers import layers

    return layers(args.recipe, args.overrides, args)

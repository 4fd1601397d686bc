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
    parser = argparse.ArgumentParser(
        prog="python -m ops", description="Distils big image classifiers into small ones.", epilog=EPILOG
    )
    parser.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_demo, _train, _evaluate, _show, _layers, _recipes, _data, _cache, _submit, _doctor):
        add(commands)
    return parser


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
    train.set_defaults(function=calls("ops.train:train", "recipe", "overrides"))


def _evaluate(commands: Any) -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="accuracy of a finished run's student, or of a recipe's teacher",
        description="Evaluates on every validation image once. RUN is the folder of a run (its deployed student is "
        "evaluated, beside its teacher) or a recipe (only its teacher is).",
    )
    evaluate.add_argument("run", metavar="RUN", help="a run's folder, such as outputs/my-run, or a recipe")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value", help="such as data.root=FOLDER")
    evaluate.set_defaults(function=calls("ops.train:evaluate_run", "run", "overrides"))


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
    layers.add_argument("--max-elements", type=int, default=262144, metavar="N", help="pool larger maps (%(default)s)")
    layers.add_argument("--output", default="outputs/layers", metavar="DIR", help="where it is written (%(default)s)")
    layers.set_defaults(function=_run_layers)


def _recipes(commands: Any) -> None:
    recipes = commands.add_parser(
        "recipes",
        help="the recipes that come with the project, with what to expect of each",
        description="Lists the named recipes with the published result of each; given a whole NAME, prints that recipe "
        "as a complete YAML file with its manual, to copy and edit.",
    )
    recipes.add_argument("name", metavar="NAME", nargs="?", help="a recipe's name, or a part of several")
    recipes.set_defaults(function=calls("ops.catalog:recipes", "name"))


def _data(commands: Any) -> None:
    data = commands.add_parser(
        "data",
        help="turn a published data set into an image folder",
        description="Unpacks the Parquet files of CIFAR-100 (train-*.parquet and test-*.parquet, with columns img and "
        "fine_label) into the image folder that the CIFAR-100 recipes read.",
    )
    data.add_argument("name", choices=["cifar100"])
    data.add_argument("--from", dest="source", required=True, metavar="DIR", help="the folder of the Parquet files")
    data.add_argument("--to", default="data/cifar100", metavar="DIR", help="the image folder to write (%(default)s)")
    data.set_defaults(function=calls("ops.cifar:unpack", "source", "to"))


def _cache(commands: Any) -> None:
    cache = commands.add_parser(
        "cache",
        help="teacher outputs computed once: build, verify, info, plan",
        description="A recipe's teacher outputs in Arrow shards, as its 'cache:' section says. Train from a cache with "
        "teacher.source=cache.",
    )
    actions = cache.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="fill the recipe's cache, or go on filling it, on the whole cluster")
    verify = actions.add_parser("verify", help="check every byte, and compute some rows anew")
    info = actions.add_parser("info", help="what a cache holds, and which recipes it can serve")
    plan = actions.add_parser("plan", help="measure this machine: is a cache worth it?")
    for action in (build, verify, plan):
        _recipe(action)
    verify.add_argument("--rows", type=int, default=256, help="how many of each part (default: %(default)s)")
    plan.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default: %(default)s)")
    info.add_argument("folder", metavar="DIR", help="the cache's folder or URI")
    build.set_defaults(function=calls("ops.cache:build_cache", "recipe", "overrides"))
    verify.set_defaults(function=calls("ops.cache:verify_cache", "recipe", "overrides", "rows"))
    plan.set_defaults(function=calls("ops.cache:plan_cache", "recipe", "overrides", "seconds"))
    info.set_defaults(function=calls("ops.cache:show_cache", "folder"))


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


def _recipe(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file, or a name that `recipes` lists, such as kd")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="fields to set, such as train.epochs=5")


def _run_layers(args: argparse.Namespace) -> int:
    from ops.layers import layers

    return layers(args.recipe, args.overrides, args)

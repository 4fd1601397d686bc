"""The command line of `reproduce`."""

from __future__ import annotations

from typing import Any

from ops.command_line.commands import output_dir
from ops.command_line.parser import Parser, add_overrides, calls, command, goes_on


@command(
    "run",
    help="re-run published experiments, some minutes per call",
    description="Runs published experiments again: the same command goes on where it stopped, however it was stopped, "
    "and says when it is done. Files in the folder --state are all that it needs for that.",
)
def reproduce(parser: Parser) -> None:
    studies: Any = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    _reproduce_paper3(
        studies.add_parser(
            "paper3",
            help="the feature-only paper on 20 classes of ImageNet, on a CPU",
            description="Caches EfficientNet-Lite0's answers, trains every row with every seed, and writes "
            "benchmarks/results/paper3_*.json and the page benchmarks/PAPER3.md as runs finish.",
        )
    )
    _reproduce_cifar100(
        studies.add_parser(
            "cifar100",
            help="the CIFAR-100 rows of resnet32x4 -> resnet8x4, on a GPU",
            description="Trains the published rows, and what goes beyond them, of one pair of networks.",
        )
    )


def _reproduce_paper3(parser: Parser) -> None:
    from ops.reproduce.experiments import EXPERIMENTS

    parser.add_place("--data", metavar="DIR", help="the 20 classes in any container, or ImageNet's own folder")
    parser.add_place(
        "--weights", metavar="FILE", help="EfficientNet-Lite0's weights (default: from the installed package)"
    )
    parser.add_place(
        "--cifar",
        metavar="DIR",
        help="CIFAR-100, as `data cifar100` writes it, or the hub's Parquet, for short_schedule",
    )
    parser.add_place("--cifar-weights", metavar="FILE", help="resnet56's weights, likewise")
    parser.add_argument(
        "--experiments",
        nargs="+",
        choices=["identities", *EXPERIMENTS],
        metavar="NAME",
        default=["identities", "pilot", "regime"],
        help=f"any of identities, {', '.join(EXPERIMENTS)} (default: the first three)",
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="rows of the experiments (default: all)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N", help="seeds (default: as many as the experiment has)"
    )
    parser.add_place("--state", default=f"{output_dir()}/paper3", help="folder for all state (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also run what another machine has already published")
    _slice(parser, minutes=60.0, side_by_side=9)
    parser.set_defaults(function=calls("ops.reproduce.paper3:reproduce"))


def _reproduce_cifar100(parser: Parser) -> None:
    from ops.reproduce.cifar100 import BEYOND, ROWS

    parser.add_argument(
        "--rows",
        nargs="+",
        choices=ROWS | BEYOND,
        metavar="ROW",
        help="rows (default: the papers' rows except the teacher; with --held-out, those beyond the papers)",
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="evaluate on this held-out fraction of the training images instead of the test set",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the students; the teacher's is 0")
    parser.add_place("--state", default=f"{output_dir()}/cifar100-benchmark", help="folder of runs (%(default)s)")
    parser.add_place("--data", default="data/cifar100", help="image folder (%(default)s)")
    parser.add_argument("--device", help="such as cpu (default: the GPU, where there is one)")
    parser.add_argument("--collect", action="store_true", help="write the results so far to results/cifar100.json")
    _slice(parser, minutes=9.0, side_by_side=10)
    parser.set_defaults(function=calls("ops.reproduce.cifar100:reproduce"))


def _slice(parser: Parser, minutes: float, side_by_side: int) -> None:
    goes_on(parser)
    parser.add_argument("--commit", help="the commit of this code, on a machine without its repository")
    parser.add_argument(
        "--minutes", type=float, default=minutes, help="stop and save after this many minutes (%(default)s)"
    )
    parser.add_argument(
        "--side-by-side", type=int, default=side_by_side, help="number of interleaved runs (%(default)s)"
    )
    add_overrides(
        parser, "fields to override in all recipes, for trials with a --state of their own, such as train.epochs=1"
    )

"""The command line of `capacity`."""

from __future__ import annotations

import argparse
from functools import partial

from ops.capacity.options import OPTIONS
from ops.command_line.parser import Parser, add_recipe, calls, command


@command(
    "look",
    help="estimate a recipe on a cluster: speed, bytes, memory, failures, hours, cost",
    description="Computes what a recipe takes on N GPUs: images a second, bytes from disk and cache, all-reduce, "
    "memory, checkpoints, failures with the goodput that follows (by simulation), hours and cost. The speed of one GPU "
    "is measured here or given; what is neither is assumed, and shown as such. Trains nothing.",
)
def capacity(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs, one worker each")
    parser.add_argument("--nodes", type=int, metavar="M", help="number of nodes (default: one per 8 GPUs)")
    for option in OPTIONS.values():
        assumed = "" if option.assumed is None else f" (assumed: {option.assumed:g})"
        parser.add_argument(
            option.flag,
            dest="values",
            action="append",
            type=partial(named_number, option.name),
            default=[],
            metavar="X",
            help=option.help + assumed,
        )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the measurement (default: %(default)s)")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print the estimate as JSON")
    parser.set_defaults(function=calls("ops.capacity.report:capacity"))


def named_number(name: str, text: str) -> tuple[str, float]:
    """Return an option's name with its value. Refused, as argparse does, for text that is not a number."""
    try:
        return name, float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}") from error

"""The commands for many runs and for clusters: `sweep` and `submit`."""

from __future__ import annotations

import argparse

from ops.command_line.parser import RECIPE, Parser, add_recipe, calls, command, goes_on


@command(
    "run",
    help="search fields of a recipe with many runs over one cache: temperatures, weights, layers, ...",
    description="Searches the fields of a recipe that SPACE.yaml names, by grid, at random or with TPE; runs that fall "
    "behind are stopped early. All runs read one cache of teacher outputs, built first. The same command resumes an "
    "interrupted sweep. `python -m ops fields sweep` shows what SPACE.yaml may hold.",
)
def sweep(parser: Parser) -> None:
    add_recipe(parser)
    parser.add_argument("--space", required=True, metavar="SPACE.yaml", help="the search space")
    parser.add_argument(
        "--concurrent", type=int, metavar="N", help="number of concurrent runs (default: as many as fit)"
    )
    parser.add_argument(
        "--plan", dest="plan_only", action="store_true", help="show what would run and what it would cost, and exit"
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="also retry runs that failed by their own error (lost ones are always retried)",
    )
    parser.set_defaults(function=calls("ops.sweep.command:sweep", require=RECIPE))
    goes_on(parser, "continues the sweep, its runs from their last checkpoints")


@command(
    "run",
    help="run one of these commands as a job on a Ray cluster, and follow it",
    description="Sends the files of this tree that git tracks and the command to the cluster, shows the job's log and "
    "ends with its exit status. Ctrl-C leaves the job running. Data, outputs and the environment are not sent.",
)
def submit(parser: Parser) -> None:
    parser.add_argument("--address", required=True, metavar="URL", help="the head's dashboard, http://HEAD:8265")
    parser.add_argument("--token-file", metavar="FILE", help="the cluster's token (default: where Ray looks for it)")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATH",
        help="also send this file or folder, which git does not track; repeatable",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="an environment variable for the job, by default with its local value; never printed here, but anyone "
        "with the cluster's token can read it; repeatable",
    )
    parser.add_argument("--name", metavar="NAME", help="the job's name on the cluster (default: Ray makes one)")
    parser.add_argument("--no-wait", action="store_true", help="do not follow the job")
    parser.add_argument(
        "--resources", metavar="NAME=AMOUNT,...", help="what the job's own process reserves, such as CPU=1,memory=4e9"
    )
    parser.add_argument(
        "job",
        nargs=argparse.REMAINDER,
        metavar="COMMAND ...",
        help="the command to run, such as: train RECIPE key=value",
    )
    parser.set_defaults(function=calls("ops.submit:submit"))

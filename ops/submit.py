"""`submit`: a command of this program as a job on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.jobs import Detached, check_paths, shipped
from cluster.jobs import submit as submit_job
from kdcore.errors import Refused
from ops import catalog
from ops.console import console, say
from ops.parser import build_parser


def submit(address: str, token_file: str | None, command: Sequence[str]) -> int:
    """Submit `command`, the words after `python -m ops`, and follow it; return the job's exit status.

    What can be known without the cluster is refused here, before anything is sent.
    """
    parsed = build_parser().parse_args(command)
    if not hasattr(parsed, "recipe"):
        raise Refused(f"{command[0]} is no job; submit a command that takes a recipe, such as train")
    check_paths(catalog.load(parsed.recipe, parsed.overrides))
    files = {parsed.recipe, getattr(parsed, "space", None)}
    words = [shipped(word) if word in files and Path(word).is_file() else word for word in command]
    try:
        return submit_job(address, ["python", "-m", "ops", *words], token_file, show)
    except Detached as left:
        say(str(left))
        return 130


def show(text: str) -> None:
    """Print a piece of a job's log, as it came."""
    console.out(text, end="", highlight=False)

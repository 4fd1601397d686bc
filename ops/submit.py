"""`submit`: a command of this program as a job on a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cluster.jobs import TREE, Detached, check_paths, shipped
from cluster.jobs import submit as submit_job
from cluster.plugins import by_name, to_ship
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
    config = catalog.load(parsed.recipe, parsed.overrides)
    check_paths(config)
    files = {parsed.recipe, getattr(parsed, "space", None)}
    words = [shipped(word) if word in files and Path(word).is_file() else word for word in command]
    if config.plugins:  # the job finds them as modules, wherever they lie here
        words = [*without_plugins(words), f"plugins={json.dumps(by_name(config.plugins))}"]
    try:
        return submit_job(address, ["python", "-m", "ops", *words], token_file, print_log, to_ship(config, TREE))
    except Detached as left:
        say(str(left))
        return 130


def without_plugins(words: Sequence[str]) -> list[str]:
    """Return the words of a command without those that name plug-ins."""
    kept: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if before != "--plugin" and not word.startswith(("--plugin", "plugins=", "plugins+=")):
            kept.append(word)
    return kept


def print_log(text: str) -> None:
    """Print a piece of a job's log, as it came."""
    console.out(text, end="", highlight=False)

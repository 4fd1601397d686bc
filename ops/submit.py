"""`submit`: a command of this program as a job on a Ray cluster."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cluster.jobs import TREE, Detached, JobOptions, check_path, check_paths, shipped
from cluster.jobs import submit as submit_job
from cluster.parcel import pack_parcel, place_in
from cluster.recipe.config import RunConfig
from cluster.recipe.files import files_read
from cluster.recipe.paths import paths_given
from cluster.recipe.plugins import by_name, to_ship
from cluster.recipe.rules import check_may_be_trained
from kdcore.errors import Refused
from kdcore.located import is_uri
from ops import catalog
from ops.command_line.parser import build_parser
from ops.console import console, say
from ops.evaluation.subjects import is_recipe

NOT_JOBS = ("submit", "ui", "fields", "recipes", "review", "doctor", "deliver")
# What an argument that names a place accepts besides places.
WORDS: dict[str, Callable[[], Iterable[str]]] = {"run": catalog.names, "student_weights": lambda: ("timm",)}


def submit(
    address: str,
    token_file: str | None,
    include: Sequence[str],
    env: Sequence[str],
    name: str | None,
    no_wait: bool,
    resources: str | None,
    job: Sequence[str],
) -> int:
    """Submit a job, the words after `python -m ops`, and follow it; return the job's exit status.

    A leading `--`, behind which other programs take a job's words, is left out. What can be checked without the cluster
    is refused here, before anything is sent.
    """
    job = job[1:] if job[:1] == ["--"] else job
    parsed = build_parser().parse_args(job)
    if parsed.command in NOT_JOBS:
        raise Refused(
            f"{job[0]} cannot be submitted; submit a command that computes: train, sweep, cache build, evaluate, "
            f"export, ..."
        )
    check_places(parsed)
    words, modules, files = list(job), [], list(include)
    if (recipe := recipe_of(parsed)) is None:
        for key, path in paths_given(RunConfig, getattr(parsed, "overrides", ())):
            check_path(key, path)
    else:
        config = catalog.load(recipe, parsed.overrides)
        if parsed.command == "train":
            check_may_be_trained(config)
        check_paths(config)
        named = {getattr(parsed, "recipe", None), getattr(parsed, "space", None)}
        words = [shipped(word) if word in named and Path(word).is_file() else word for word in job]
        files += [str(path) for word in named if word for path in files_of(word)]
        modules = to_ship(config, pack_parcel(TREE, files))
        if config.plugins:  # the job finds them as modules, wherever they lie here
            words = [*without_plugins(words), f"plugins={json.dumps(by_name(config.plugins))}"]
    options = JobOptions(
        include=tuple(files),
        env=environment(env),
        name=name,
        wait=not no_wait,
        resources=amounts(resources),
        modules=tuple(modules),
    )
    try:
        return submit_job(address, ["python", "-m", "ops", *words], token_file, print_log, options)
    except Detached as left:
        say(str(left))
        return 130


def recipe_of(parsed: argparse.Namespace) -> str | None:
    """Return the recipe of a command, if it names one; None for a run, whose folder may be on the cluster only."""
    recipe, run = getattr(parsed, "recipe", None), getattr(parsed, "run", None)
    if (
        recipe is None
        and run is not None
        and (run in catalog.names() or (is_recipe(Path(run)) and Path(run).is_file()))
    ):
        return str(run)
    return recipe


def check_places(parsed: argparse.Namespace) -> None:
    """Refuse a place that a job would look for in its own working folder, which starts without it and is not kept."""
    for argument in getattr(parsed, "places", ()):
        given = getattr(parsed, argument)
        for place in given if isinstance(given, list) else [given]:
            if place is None or is_uri(place) or Path(place).is_absolute():
                continue
            if argument not in WORDS or place not in WORDS[argument]():
                raise Refused(f"{argument} is {place!r}; a job needs a place that every node sees: give /shared/...")


def files_of(recipe: str) -> list[Path]:
    """Return the files in the tree that a recipe's file is composed of, itself included; none for a named recipe."""
    if is_uri(recipe) or not Path(recipe).is_file():
        return []
    return [path for path in files_read(Path(recipe), catalog.read) if place_in(TREE, path)]


def environment(words: Sequence[str]) -> dict[str, str]:
    """Return {name: value} of NAME=VALUE, and of NAME with this process's own value. Refused where that is not set."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.isidentifier():
            raise Refused(f"--env {name}: give NAME, or NAME=VALUE")
        if not equals and name not in os.environ:
            raise Refused(f"--env {name}: it is not set here; set it, or give {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def amounts(text: str | None) -> dict[str, float]:
    """Return {resource: amount} of a text such as CPU=4,GPU=1,memory=8e9."""
    found: dict[str, float] = {}
    for part in filter(None, (text or "").split(",")):
        name, _, amount = part.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            found[name] = math.nan
        if not (name and 0 <= found[name] < math.inf):
            raise Refused(f"--resources {part}: give NAME=AMOUNT,..., such as CPU=1,memory=8e9 (bytes)")
    return found


def without_plugins(words: Sequence[str]) -> list[str]:
    """Return the words of a command without those that name plug-ins."""
    kept: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        if before != "--plugin" and not word.startswith(("--plugin", "plugins=", "plugins+=")):
            kept.append(word)
    return kept


def print_log(text: str) -> None:
    """Print a piece of a job's log, unchanged."""
    console.out(text, end="", highlight=False)

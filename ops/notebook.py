"""The commands as Python functions, for notebooks: they take recipes and return results as objects.

Each is the function behind a command, with the same refusals; progress is printed as the command prints it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.cache.job import build
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.recipe.reading import configure, validated
from cluster.sweep.config import SweepConfig, load_sweep
from cluster.sweep.room import concurrency
from cluster.sweep.run import exclusive_folder, sweep_session
from cluster.training.launch import RunResult
from ops import catalog
from ops.export.write import export as write_files
from ops.sweep.command import plan_sweep, run
from ops.sweep.report import PointResult
from ops.train import watched
from pipelines.cache.manifest import Manifest

CHECKED_IMAGES = 256  # validation images on which an export's files are compared with the student

Recipe = str | Path | Mapping[str, Any]


def load(recipe: Recipe, *overrides: str) -> RunConfig:
    """Return the configuration of a recipe: its name, its file, or its mapping; overrides as 'train.epochs=5'."""
    if isinstance(recipe, Mapping):
        return absolute(configure(recipe, overrides, "recipe"), Path.cwd())
    return catalog.load_here(recipe, overrides)


def train(config: RunConfig) -> RunResult:
    """Train a recipe to its end, or continue it; for a finished run, return its result."""
    return watched(config, "ops.notebook.train")


def build_cache(config: RunConfig) -> list[Manifest]:
    """Fill the caches of a recipe's teachers, or resume filling them."""
    return [build(one) for one in config.cache_recipes]


def export(run: RunResult | str | Path, output: str | Path, *overrides: str) -> Path:
    """Write a finished run's student as files that need nothing from this project, checked; return their folder.

    A recipe takes it as `local-dir:FOLDER`, for a student to start from or as a teacher.
    """
    folder = run.run_dir if isinstance(run, RunResult) else str(run)
    write_files(folder, str(output), CHECKED_IMAGES, None, (), 0.0, overrides)
    return Path(output)


def sweep(
    config: RunConfig, space: str | Path | Mapping[str, Any], concurrent: int | None = None
) -> Sequence[PointResult]:
    """Search a space, given as a file or a mapping, over one cache; return the points, the best first."""
    started = time.perf_counter()
    wanted = validated(SweepConfig, space, "space") if isinstance(space, Mapping) else load_sweep(space)
    concurrent = concurrent or wanted.concurrent
    plan = plan_sweep(config, wanted)
    with sweep_session(plan.base, concurrent), exclusive_folder(plan):
        return run(plan, concurrency(plan.base, concurrent), "ops.notebook.sweep", started)

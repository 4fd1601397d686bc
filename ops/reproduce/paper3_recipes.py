"""A row of `reproduce paper3` as a recipe: the one that a run starts with, and a digest that tells rows apart.

Not here: which rows there are (`ops.reproduce.experiments`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.recipe.reading import apply_override
from ops import catalog
from ops.reproduce.experiments import Experiment, Row
from ops.reproduce.paper3_state import State
from ops.reproduce.slices import run_name


def configure(
    name: str, experiment: Experiment, row: Row, label: str, seed: int, state: State, overrides: Sequence[str]
) -> RunConfig:
    """Return the recipe of a row with the changes of its experiment, and the paths of its inputs and outputs."""
    changes = [*experiment.changes, *row.changes]
    recipe = catalog.load(row.recipe, changes)
    on_cifar = row.recipe.startswith("cifar100/")
    places = [
        f"name={name}-{run_name(label, seed)}",
        f"seed={seed}",
        "view_seed=0",
        f"output_dir={state.path}",
        f"tracking.experiment=paper3-{name}",
        "tracking.system_metrics=false",
        "scaling.num_workers=0",
        f"data.num_threads={max(1, (os.cpu_count() or 1) // 4)}",
        f"data.root={state.cifar if on_cifar else state.images}",
    ]
    if on_cifar:
        # As `data cifar100` writes it, or as the hub has it.
        split = "val" if (state.cifar / "val").exists() else "test"
        places += ["data.loader=resident", f"data.val_split={split}"]
    if recipe.teacher is not None:
        places += [
            f"teacher.checkpoint={state.cifar_weights if on_cifar else state.weights}",
            "teacher.source=cache",
            f"cache.dir={state.cache(row.cache)}",
            *([] if on_cifar else [f"teacher.class_indices={state.class_indices}"]),
        ]
    return absolute(catalog.load(row.recipe, [*changes, *places, *overrides]), Path.cwd())


def recipe_digest(experiment: Experiment, row: Row, overrides: Sequence[str]) -> str:
    """Return 16 hex digits of SHA-256 over a row's recipe as written: its files and changes, without `about`.

    The same on every machine and for every seed; fields that the recipe leaves out, new ones too, do not change it.
    """
    data = copy.deepcopy(catalog.read(row.recipe))
    data.pop("about", None)
    for change in [*experiment.changes, *row.changes, *overrides]:
        apply_override(data, change)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

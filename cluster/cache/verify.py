"""Whether a cache is what it says: every byte against its checksum, and rows chosen at random against the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.cache.builder import SMALLER_BATCH, Builder
from cluster.device_memory import refuse_full_gpu
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_cache, require_teacher
from cluster.teachers.stored import refuse_channels_last
from pipelines.cache.local import local_folder
from pipelines.cache.manifest import Manifest, load_manifest, refuse_other_identity
from pipelines.cache.reader import CacheReader, refuse_damaged
from pipelines.cache.rows import named

# Relative to a row's largest number: what another batch size or machine changes in the teacher's arithmetic.
TOLERANCES = {"float32": 1e-4, "bfloat16": 3e-2}


@dataclass
class Agreement:
    """How one column of a part compares with recomputed rows.

    wrong: the rows that differ from the stored ones by more than the coding and rounding explain.
    """

    part: str
    column: str
    coding: str
    rows: int = 0
    wrong: int = 0


@refuse_full_gpu(SMALLER_BATCH)
def verify(config: RunConfig, num_rows: int, device: torch.device, seed: int = 0) -> list[Agreement]:
    """Read the whole cache, then recompute random rows of every part, which needs the teacher.

    Refused for a damaged file, and for a cache that does not belong to the recipe.
    """
    require_teacher(config)
    cache = require_cache(config.cache, config.views)
    directory = local_folder(cache.dir, cache.copies_dir)
    manifest = load_manifest(directory)
    refuse_damaged(directory, list(manifest.shards), full=True)
    builder = Builder(config, device)
    refuse_other_identity(manifest, builder.identity(), str(directory), cache.trust)
    refuse_channels_last(manifest, config, str(directory))
    rng = np.random.default_rng(seed)
    found = []
    for part in manifest.plan.parts:
        reader = CacheReader(directory, manifest, part, None, device)
        found += compare(builder, reader, manifest, part, chosen(manifest, part, num_rows, rng))
    return found


def chosen(
    manifest: Manifest, part: str, num_rows: int, rng: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield (view, sample ids) of random rows of a part, each at most once."""
    there = manifest.plan.parts[part]
    total = there.num_rows * there.num_views
    views, ids = np.divmod(rng.choice(total, min(num_rows, total), replace=False), there.num_rows)
    for view in np.unique(views):
        yield int(view), np.sort(ids[views == view])


def compare(
    builder: Builder,
    reader: CacheReader,
    manifest: Manifest,
    part: str,
    rows: Iterator[tuple[int, NDArray[np.int64]]],
) -> list[Agreement]:
    """Compare stored rows with the same rows, recomputed."""
    rounding = TOLERANCES[manifest.plan.identity["teacher"]["precision"]]
    found = {column.name: Agreement(part, column.name, column.coding) for column in reader.columns}
    for view, ids in rows:
        for done, answers in builder.answers(part, view, ids):
            fresh = named(answers)
            batch = ids[done - len(next(iter(fresh.values()))) : done]
            stored = named(reader.outputs(view, batch))
            for column in reader.columns:
                code = reader.codes.get(column.name)
                agrees = column.agrees(fresh[column.name], stored[column.name], rounding, code)
                found[column.name].rows += len(agrees)
                found[column.name].wrong += int((~agrees).sum())
    return list(found.values())

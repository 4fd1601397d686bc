"""How far the order by windows is from a full shuffle: the classes in a batch, and which samples are neighbours.

For a plan of ImageNet's size: 1,281,167 samples of 1,000 classes, 2,300 in a shard, as in packs of 256 MiB. Shards are
random parts of all samples, or in order of class, as a tar of class folders is. For every window:

    classes     different classes in a batch of 256, mean and standard deviation over batches
    distance    between neighbours, in the stored order of samples: its mean as a share of all samples (random: 1/3)
    company     of two samples of one batch, how often they were in one window of the epoch before

    python -m ops.benchmarks.shuffle
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.console import console, say, table
from ops.facts import write
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from pipelines.views.windows import Windows

NUM, CLASSES, SHARD, BATCH = 1_281_167, 1000, 2300, 256
SIZES = (1, 4, 16, 64, None)
BATCHES = 500  # examined, evenly spread over the epoch
LAYOUTS = ("random", "by class")

Ids = NDArray[np.int64]


def layout(name: str) -> Ids:
    """Return the sample ids in the order in which they are stored. Ids are in order of class."""
    return np.random.default_rng(0).permutation(NUM) if name == "random" else np.arange(NUM)


def deviation(stored: Ids, size: int | None) -> dict[str, float]:
    """Return the measures of the module's docstring for the second epoch. size: None for the full shuffle."""
    starts = np.arange(0, NUM + SHARD, SHARD).clip(max=NUM)
    windows = None if size is None else Windows(size, stored, starts)
    plan = ViewPlan(ViewPolicy(), 0, NUM, windows)
    firsts = np.linspace(0, NUM - BATCH, BATCHES).astype(np.int64)
    batches = plan.order(1, (firsts[:, None] + np.arange(BATCH)).ravel()).reshape(-1, BATCH)
    labels = batches * CLASSES // NUM
    counts = np.array([len(np.unique(row)) for row in labels])
    position = np.empty(NUM, dtype=np.int64)
    position[stored] = np.arange(NUM)
    distance = np.abs(np.diff(position[batches], axis=1)).mean() / NUM
    found = {"classes": float(counts.mean()), "classes_sd": float(counts.std()), "distance": float(distance)}
    if windows is not None:
        group = np.empty(windows.num_shards, dtype=np.int64)
        for number, shards in enumerate(windows.windows(0, 0)):
            group[shards] = number
        before = group[position[batches] // SHARD]
        found["company"] = float(np.mean([_share_of_pairs(row) for row in before]))
    return found


def _share_of_pairs(groups: Ids) -> float:
    """Return the share of the pairs of a batch that are of one group."""
    counts = np.bincount(groups)
    return float((counts * (counts - 1)).sum() / (len(groups) * (len(groups) - 1)))


def main() -> None:
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in LAYOUTS:
        stored = layout(name)
        results[name] = {str(size or "all"): deviation(stored, size) for size in SIZES}
        rows = [
            [
                size,
                f"{found['classes']:.1f} ± {found['classes_sd']:.1f}",
                f"{found['distance']:.4f}",
                f"{found['company']:.1%}" if "company" in found else "-",
            ]
            for size, found in results[name].items()
        ]
        title = (
            f"shards {name}; {NUM:,} samples of {CLASSES:,} classes, {SHARD:,} a shard, {BATCHES} batches of {BATCH}"
        )
        console.print(table(title, ["shards of a window", "classes in a batch", "distance", "company"], rows))
    say(f"written: {write('shuffle', results)}")


if __name__ == "__main__":
    main()

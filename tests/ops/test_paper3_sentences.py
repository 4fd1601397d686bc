"""The first page's summary of the experiments of `reproduce paper3`."""

from __future__ import annotations

from typing import Any

import pytest

from ops.benchmarks.paper3_sentences import augmentation_rows, seeds


def experiment(size: int, epochs: int, gains: dict[int, float], n: int) -> dict[str, Any]:
    """A result file as far as its sentence reads it. gains: of features alone over labels alone, by cached views."""
    interval = {"low": 0.01, "high": 0.03} if n > 1 else {"low": None, "high": None}
    rows = {
        f"feature_only-{views}": {"differences": {f"alone-{views}": {"n": n, "mean": gain, **interval}}}
        for views, gain in gains.items()
    }
    return {"setting": {"image_size": size, "epochs": epochs}, "rows": rows}


@pytest.mark.parametrize(
    ("n", "shown"),
    [
        (1, "64 pixels, 50 epochs (1 seed) | **1**: +4.00, **2**: +3.00, **8**: +2.00, **50**: +1.00 |"),
        (3, "64 pixels, 50 epochs (3 seeds) | **1**: +4.00 [+1.00, +3.00], **2**: +3.00 [+1.00, +3.00], **8**: "),
    ],
)
def test_the_small_experiment_stands_in_until_the_whole_has_seeds(n, shown):
    whole = experiment(64, 50, {1: 0.04, 2: 0.03, 8: 0.02, 50: 0.01}, n)
    small = experiment(32, 15, {1: 0.02, 4: 0.02, 15: 0.02}, 3)
    rows = augmentation_rows(whole, small)
    assert rows[0].startswith(f"| by cached views, with crops and flips, {shown}")
    assert ["32 pixels" in row for row in rows] == ([False, True] if n < 3 else [False])


def test_numbers_of_seeds_in_words():
    assert [seeds(ns) for ns in ([1, 1], [3, 3], [1, 3])] == ["1 seed", "3 seeds", "1 to 3 seeds"]

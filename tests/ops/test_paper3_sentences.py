"""The first page's sentences about the experiments of `reproduce paper3`."""

from __future__ import annotations

from typing import Any

import pytest

from ops.benchmarks.paper3_sentences import augmentation_sentence


def experiment(size: int, epochs: int, gains: dict[int, float], n: int) -> dict[str, Any]:
    """A result file as far as its sentence reads it. gains: of features alone over labels alone, by cached views."""
    interval = {"low": 0.01, "high": 0.03} if n > 1 else {"low": None, "high": None}
    rows = {
        f"feature_only-{views}": {"differences": {f"alone-{views}": {"n": n, "mean": gain, **interval}}}
        for views, gain in gains.items()
    }
    return {"setting": {"image_size": size, "epochs": epochs}, "rows": rows}


@pytest.mark.parametrize(
    ("n", "said"),
    [
        (1, "64 pixels, 50 epochs (1 seed) +4.00 with 1, +3.00 with 2, +2.00 with 8, +1.00 with 50; 32 pixels, 15 "),
        (3, "64 pixels, 50 epochs (3 seeds) +4.00 [+1.00, +3.00] with 1, +3.00 [+1.00, +3.00] with 2, "),
    ],
)
def test_the_small_experiment_stands_in_until_the_whole_has_seeds(n, said):
    whole = experiment(64, 50, {1: 0.04, 2: 0.03, 8: 0.02, 50: 0.01}, n)
    small = experiment(32, 15, {1: 0.02, 4: 0.02, 15: 0.02}, 3)
    sentence = augmentation_sentence(whole, small)
    assert sentence.startswith(f"With crops and flips, and cached views: {said}")
    assert ("32 pixels" in sentence) == (n < 3)

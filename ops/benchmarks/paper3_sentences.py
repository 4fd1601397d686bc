"""What the experiments of `reproduce paper3` have come to, in sentences for the first page.

Not here: the page with all of it (`ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ops.reproduce.experiments import AMOUNTS, PILOT_VIEWS
from ops.reproduce.paper3_page import points

REGIME_ROWS = {
    "alone": "labels alone",
    "kd": "KD",
    "feature_only-ce": "features with labels",
    "feature_only": "features alone",
}


def paper3_sentences(found: dict[str, dict[str, Any]]) -> str:
    """Return a paragraph. found: the content of an experiment's result file by the experiment's name."""
    sentences = [
        regime_sentence(found["regime"]),
        amount_sentence(found["amount"]),
        augmentation_sentence(found["pilot_augmentation"]),
        layers_sentence(found["layers"]),
        "[PAPER3.md](ops/benchmarks/PAPER3.md) has every row.",
    ]
    return textwrap.fill(" ".join(sentences), 120) + "\n"


def regime_sentence(found: dict[str, Any]) -> str:
    """Return what the regime's main rows came to."""
    rows = {name: row for name in REGIME_ROWS if (row := found["rows"][name])["top1"] is not None}
    means = ", ".join(f"{REGIME_ROWS[name]} {row['top1']['mean']:.1%}" for name, row in rows.items())
    n = min(row["top1"]["n"] for row in rows.values())
    gain = points(found["rows"]["feature_only"]["differences"]["alone"])
    return (
        "On 20 classes of ImageNet, EfficientNet-Lite0 teaches a small ResNet for 50 epochs without augmentation. Mean "
        f"top-1 over {n} seeds: {means}. Features alone gain {gain} points over labels alone (in brackets: 95% "
        f"intervals)."
    )


def amount_sentence(found: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of images."""
    gains, n = gains_of_features(found, AMOUNTS)
    with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
    return f"The gain with fewer images per class ({n} seeds): {with_number}."


def augmentation_sentence(found: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of views, at 32 pixels."""
    gains, n = gains_of_features(found, PILOT_VIEWS)
    with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
    return f"With crops and flips, {in_small(found)} ({n} seeds): {with_number} cached views."


def layers_sentence(found: dict[str, Any]) -> str:
    """Return what predicts how well a layer teaches."""
    measured = found["correlation"]
    names = {"Q": "the layer's Q", "separation": "Q's part S", "depth": "depth"}
    shown = ((name, measured[key]) for key, name in names.items())
    rho = ", ".join(f"{name} {one['spearman']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for name, one in shown)
    setting = f"each of {measured['layers']} layers"
    return f"Taught by {setting} alone ({measured['seeds']} seeds), students' top-1 has these rank correlations: {rho}."


def gains_of_features(found: dict[str, Any], numbers: Sequence[int]) -> tuple[dict[int, str], int]:
    """Return the gains over labels alone by number, of those that were run, and the fewest seeds of any."""
    rows = {number: found["rows"][f"feature_only-{number}"]["differences"] for number in numbers}
    gains = {number: row[f"alone-{number}"] for number, row in rows.items() if f"alone-{number}" in row}
    return {number: points(gain) for number, gain in gains.items()}, min(gain["n"] for gain in gains.values())


def in_small(found: dict[str, Any]) -> str:
    """Return how small an experiment is."""
    return f"at {found['setting']['image_size']} pixels for {found['setting']['epochs']} epochs"

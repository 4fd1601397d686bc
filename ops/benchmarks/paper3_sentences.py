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
        "On 20 classes of ImageNet, EfficientNet-Lite0 teaching a small ResNet for 50 epochs without "
        f"augmentation, mean top-1 (n = {n}): {means}; features alone over labels alone {gain} points."
    )


def amount_sentence(found: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of images."""
    gains, n = gains_of_features(found, AMOUNTS)
    with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
    return f"With fewer images a class (n = {n}): {with_number}."


def augmentation_sentence(found: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of views, at 32 pixels."""
    gains, n = gains_of_features(found, PILOT_VIEWS)
    with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
    return f"The same difference with crops and flips, {in_small(found)} (n = {n}): {with_number} views."


def layers_sentence(found: dict[str, Any]) -> str:
    """Return what predicts how well a layer teaches."""
    measured = found["correlation"]
    names = {"Q": "its quality Q", "separation": "Q's separation S", "depth": "its depth"}
    shown = ((name, measured[key]) for key, name in names.items())
    rho = ", ".join(f"{name} {one['spearman']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for name, one in shown)
    setting = f"one of {measured['layers']} layers alone"
    return f"Students taught by {setting} (n = {measured['seeds']}): rank correlation of their top-1 with {rho}."


def gains_of_features(found: dict[str, Any], numbers: Sequence[int]) -> tuple[dict[int, str], int]:
    """Return the gains over labels alone by number, of those that were run, and the fewest seeds of any."""
    rows = {number: found["rows"][f"feature_only-{number}"]["differences"] for number in numbers}
    gains = {number: row[f"alone-{number}"] for number, row in rows.items() if f"alone-{number}" in row}
    return {number: points(gain) for number, gain in gains.items()}, min(gain["n"] for gain in gains.values())


def in_small(found: dict[str, Any]) -> str:
    """Return how small an experiment is."""
    return f"at {found['setting']['image_size']} pixels for {found['setting']['epochs']} epochs"

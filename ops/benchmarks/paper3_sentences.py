"""The results of the experiments of `reproduce paper3`, in sentences for the first page.

Not here: the page with all of it (`ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ops.reproduce.experiments import AMOUNTS, PILOT_VIEWS, VIEWS
from ops.reproduce.paper3_page import diverged, points

MIN_SEEDS = 3
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
        augmentation_sentence(found["augmentation"], found["pilot_augmentation"]),
        layers_sentence(found["layers"]),
        "[Every row](ops/benchmarks/PAPER3.md).",
    ]
    return textwrap.fill(" ".join(sentences), 120) + "\n"


def regime_sentence(found: dict[str, Any]) -> str:
    """Return the results of the regime's main rows."""
    rows = {name: row for name in REGIME_ROWS if (row := found["rows"][name])["top1"] is not None}
    means = ", ".join(f"{REGIME_ROWS[name]} {row['top1']['mean']:.1%}" for name, row in rows.items())
    n = min(row["top1"]["n"] for row in rows.values())
    gain = gain_text(found["rows"]["feature_only"]["differences"]["alone"])
    return (
        "On 20 classes of ImageNet, EfficientNet-Lite0 teaches a small ResNet for 50 epochs without augmentation. Mean "
        f"top-1 over {n} seeds: {means}. Features alone gain {gain} points over labels alone (95% intervals over "
        "initialisations: images and order are the same)."
    )


def amount_sentence(found: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of images."""
    gains, n = gains_of_features(found, AMOUNTS)
    with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
    return f"Gains with fewer images per class ({n} seeds): {with_number}."


def augmentation_sentence(whole: dict[str, Any], small: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of views.

    Of the whole experiment, and of the one in small until the whole one has seeds enough for intervals.
    """
    texts = []
    for found, views in ((whole, VIEWS), (small, PILOT_VIEWS)):
        gains, n = gains_of_features(found, views)
        with_number = ", ".join(f"{gain} with {number}" for number, gain in gains.items())
        texts.append(f"{extent(found)} ({n} {'seed' if n == 1 else 'seeds'}) {with_number}")
        if n >= MIN_SEEDS:
            break
    return f"With crops and flips, and cached views: {'; '.join(texts)}."


def layers_sentence(found: dict[str, Any]) -> str:
    """Return what predicts how well a layer teaches."""
    measured = found["correlation"]
    names = {"Q": "Q", "separation": "Q's part S", "depth": "depth"}
    rho = "; ".join(f"{name} {rank_correlation(measured[key])}" for key, name in names.items())
    return (
        f"Taught by one of {measured['layers']} layers alone ({measured['seeds']} seeds), students' top-1 correlates "
        f"in rank with {rho} (intervals too narrow: neighbours are alike)."
    )


def rank_correlation(one: dict[str, Any]) -> str:
    """Return a predictor's rank correlation with its interval and, unless it is depth, the partial one given depth."""
    given_depth = f", {one['given_depth']:+.2f} given depth" if "given_depth" in one else ""
    return f"{one['spearman']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]{given_depth}"


def gains_of_features(found: dict[str, Any], numbers: Sequence[int]) -> tuple[dict[int, str], int]:
    """Return the gains over labels alone by number, of those that were run, and the fewest seeds of any."""
    rows = {number: found["rows"][f"feature_only-{number}"]["differences"] for number in numbers}
    gains = {number: row[f"alone-{number}"] for number, row in rows.items() if f"alone-{number}" in row}
    return {number: gain_text(gain) for number, gain in gains.items()}, min(gain["n"] for gain in gains.values())


def gain_text(gain: dict[str, Any]) -> str:
    """Return a gain in points, its interval, and a remark if it lacks diverged runs."""
    return points(gain) + diverged(gain)


def extent(found: dict[str, Any]) -> str:
    """Return the image size and the epochs of an experiment."""
    return f"{found['setting']['image_size']} pixels, {found['setting']['epochs']} epochs"

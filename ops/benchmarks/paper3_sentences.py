"""What the experiments of `reproduce paper3` have come to, in sentences for the first page.

Not here: the page with all of it (`ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import textwrap
from typing import Any

from ops.reproduce.experiments import AMOUNTS
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
        layers_sentence(found["pilot_layers"]),
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
    done = [name.rpartition("-")[2] for name, row in found["rows"].items() if row["top1"] and "feature_only-" in name]
    gains, n = gains_of_features(found, [int(number) for number in done if number.isdecimal()])
    with_number = ", ".join(f"{gain} with {number} view{'s' * (number > 1)}" for number, gain in gains.items())
    return f"The same difference with crops and flips, {in_small(found)} (n = {n}): {with_number}."


def layers_sentence(found: dict[str, Any]) -> str:
    """Return what predicts how well a layer teaches, at 32 pixels."""
    measured = found["correlation"]
    names = {"Q": "quality Q", "separation": "its part S", "depth": "depth"}
    shown = ((name, measured[key]) for key, name in names.items())
    rho = ", ".join(f"{name} {one['spearman']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]" for name, one in shown)
    setting = f"{measured['layers']} layers of the teacher one at a time, n = {measured['seeds']}, {in_small(found)}"
    return f"Top-1's rank correlation over {setting}: {rho}."


def gains_of_features(found: dict[str, Any], numbers: Any) -> tuple[dict[int, str], int]:
    """Return the gains over labels alone by number, and the fewest seeds of any."""
    rows = {number: found["rows"][f"feature_only-{number}"] for number in numbers}
    gains = {number: points(row["differences"][f"alone-{number}"]) for number, row in rows.items()}
    return gains, min(row["top1"]["n"] for row in rows.values())


def in_small(found: dict[str, Any]) -> str:
    """Return how small an experiment is."""
    return f"at {found['setting']['image_size']} pixels for {found['setting']['epochs']} epochs"

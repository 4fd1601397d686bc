"""The results of the experiments of `reproduce paper3`, in short, for the first page.

Not here: the page with all of it (`ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ops.reproduce.experiments import AMOUNTS, PILOT_VIEWS, VIEWS
from ops.reproduce.paper3_page import diverged, points

MIN_SEEDS = 3
HEAD = "| gain of features alone over labels alone | points [95% interval over initialisations only] |\n|---|---|"
REGIME_ROWS = {
    "alone": "labels alone",
    "kd": "KD",
    "feature_only-ce": "features with labels",
    "feature_only": "features alone",
}


def paper3_sentences(found: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown. found: the content of an experiment's result file by the experiment's name."""
    regime, rows = found["regime"], [amount_row(found["amount"], found["regime"])]
    rows += augmentation_rows(found["augmentation"], found["pilot_augmentation"])
    table = "\n".join([HEAD, *rows])
    last = f"{layers_sentence(found['layers'])} [Every row](ops/benchmarks/PAPER3.md)."
    return f"{paragraph(regime_sentence(regime))}\n\n{table}\n\n{paragraph(last)}\n"


def paragraph(text: str) -> str:
    """Return a text in lines of 120 characters."""
    return textwrap.fill(text, 120)


def regime_sentence(found: dict[str, Any]) -> str:
    """Return the results of the regime's main rows."""
    rows = {name: row for name in REGIME_ROWS if (row := found["rows"][name])["top1"] is not None}
    means = ", ".join(f"{REGIME_ROWS[name]} {row['top1']['mean']:.1%}" for name, row in rows.items())
    n = min(row["top1"]["n"] for row in rows.values())
    return (
        "On 20 classes of ImageNet, EfficientNet-Lite0 teaches a small ResNet for 50 epochs without augmentation. Mean "
        f"top-1 over {n} seeds: {means}."
    )


def amount_row(found: dict[str, Any], regime: dict[str, Any]) -> str:
    """Return how the gain of features alone changes with the number of images; with all of them, it is the regime's."""
    gains, ns = gains_of_features(found, AMOUNTS)
    whole = regime["rows"]["feature_only"]["differences"]["alone"]
    return row(f"by images per class ({seeds(ns)}; all: {whole['n']})", {**gains, "all": gain_text(whole)})


def augmentation_rows(whole: dict[str, Any], small: dict[str, Any]) -> list[str]:
    """Return how the gain of features alone changes with the number of views.

    Of the whole experiment, and of the one in small until the whole one has seeds enough for intervals.
    """
    rows = []
    for found, views in ((whole, VIEWS), (small, PILOT_VIEWS)):
        gains, ns = gains_of_features(found, views)
        rows.append(row(f"by cached views, with crops and flips, {extent(found)} ({seeds(ns)})", gains))
        if min(ns) >= MIN_SEEDS:
            break
    return rows


def row(title: str, gains: Mapping[Any, str]) -> str:
    """Return a row of the table. gains: by what varies."""
    return f"| {title} | {', '.join(f'**{varied}**: {gain}' for varied, gain in gains.items())} |"


def seeds(ns: Sequence[int]) -> str:
    """Return the numbers of seeds of several gains in words."""
    few, many = min(ns), max(ns)
    return f"{few} to {many} seeds" if few < many else f"{few} {'seed' if few == 1 else 'seeds'}"


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


def gains_of_features(found: dict[str, Any], numbers: Sequence[int]) -> tuple[dict[int, str], list[int]]:
    """Return the gains over labels alone by number, of those that were run, and how many seeds each has."""
    rows = {number: found["rows"][f"feature_only-{number}"]["differences"] for number in numbers}
    gains = {number: row[f"alone-{number}"] for number, row in rows.items() if f"alone-{number}" in row}
    return {number: gain_text(gain) for number, gain in gains.items()}, [gain["n"] for gain in gains.values()]


def gain_text(gain: dict[str, Any]) -> str:
    """Return a gain in points, its interval, and a remark if it lacks diverged runs."""
    return points(gain) + diverged(gain)


def extent(found: dict[str, Any]) -> str:
    """Return the image size and the epochs of an experiment."""
    return f"{found['setting']['image_size']} pixels, {found['setting']['epochs']} epochs"

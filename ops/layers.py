"""Layer quality for people: a table, a picture, and the part of a recipe that the scores recommend.

Not here: the scores (`kdcore.layer_quality`), and the pass over the images that gathers their features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from rich.table import Table

from kdcore.geometry import Quality
from kdcore.terms.base import Pair
from ops.console import table

PANELS = {
    "separation": "separation S",
    "information": "information I",
    "efficiency": "efficiency E",
    "q": "quality Q = S + sqrt(I E)",
}


def render_table(quality: Mapping[str, Quality], pairs: Sequence[Pair] = ()) -> Table:
    """One row a tap, in the order given; the last column says which student tap a recommended one is paired with."""
    student = {pair.teacher: pair.student for pair in pairs}
    samples = sorted({score.samples for score in quality.values()})
    rows = [[tap, *_figures(score), student.get(tap, "")] for tap, score in quality.items()]
    title = f"layer quality over {' or '.join(f'{n:,}' for n in samples)} images"
    return table(title, ["tap", "elements", "effective dims", "S", "I", "E", "Q", "student tap"], rows)


def _figures(score: Quality) -> list[str]:
    scores = (score.separation, score.information, score.efficiency, score.q)
    return [f"{score.dims:,}", f"{score.effective_dims:.1f}", *(f"{value:.4f}" for value in scores)]


def plot(quality: Mapping[str, Quality], path: str | Path, pairs: Sequence[Pair] = ()) -> None:
    """Four curves over depth, one above the other, the recommended taps marked; the suffix of path names the format."""
    taps, chosen = list(quality), {pair.teacher for pair in pairs}
    marked = [i for i, tap in enumerate(taps) if tap in chosen]
    figure = Figure(figsize=(max(6.0, 0.35 * len(taps)), 9.0), layout="constrained")
    panels = figure.subplots(len(PANELS), sharex=True)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        values = [getattr(score, name) for score in quality.values()]
        axes.plot(values, marker=".", color="tab:blue")
        axes.plot(marked, [values[i] for i in marked], "o", color="tab:orange")
        axes.set_title(label, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[-1].set_xticks(range(len(taps)), taps, rotation=90)
    panels[-1].set_xlabel("teacher tap, in depth order")
    figure.savefig(path)


def recommendation_yaml(pairs: Sequence[Pair], detach_head_at: str | None = None) -> str:
    """The `method` of a recipe: features alone train the backbone, labels the head behind `detach_head_at`, by default
    the student's deepest tap of the pairs."""
    if not pairs:
        raise ValueError("there is no pair to write; recommend at least one")
    features = {
        "term": "feature_only",
        "weight": 1,
        "pairs": [pair.model_dump() for pair in pairs],
        "detach_head_at": detach_head_at or pairs[-1].student,
    }
    return yaml.safe_dump({"method": [features, {"term": "ce", "weight": 1}]}, sort_keys=False)

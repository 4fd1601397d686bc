"""The figures on the page of `reproduce paper3`: every seed, a curve over a number, or accuracy over quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ops.figures import save_reproducibly
from ops.reproduce.experiments import EXPERIMENTS, FULL, MAIN, Experiment


def figure_name(name: str) -> str:
    """Return the file name of an experiment's figure."""
    return f"paper3_{name}.svg"


def draw_figures(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    """Draw a figure of every experiment that has finished runs."""
    for name, experiment in EXPERIMENTS.items():
        found = results[name]
        rows = {row: one["top1"] for row, one in found.get("rows", {}).items() if one["top1"] is not None}
        if not rows:
            continue
        figure = Figure(figsize=(7.0, 3.6), layout="constrained")
        axes = figure.subplots()
        if experiment.numbers:
            draw_curves(axes, rows, experiment, results["regime"].get("rows", {}) if name == "amount" else {})
        elif "scores" in found:
            draw_scatter(axes, rows, found["scores"])
        else:
            draw_rows(axes, rows)
        folder.mkdir(exist_ok=True)
        save_reproducibly(figure, folder / figure_name(name))


def draw_rows(axes: Any, rows: dict[str, Any]) -> None:
    """Draw every seed of every row, and the means."""
    for place, one in enumerate(reversed(rows.values())):
        axes.plot([100 * value for value in one["values"]], [place] * one["n"], "o", color="tab:blue", alpha=0.5)
        axes.plot(100 * one["mean"], place, "|", color="black", markersize=16)
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_xlabel("top-1 in %: seeds, and their mean")
    axes.grid(axis="x", alpha=0.3)


def draw_curves(axes: Any, rows: dict[str, Any], experiment: Experiment, whole: dict[str, Any]) -> None:
    """Draw the main methods over the number that the names of their rows end in. whole: the rows with all images."""
    for method in MAIN:
        names = {number: f"{method}-{number}" for number in experiment.numbers}
        places = {number: rows[name] for number, name in names.items() if name in rows}
        if whole.get(method, {}).get("top1"):
            places[FULL] = whole[method]["top1"]
        if not places:
            continue
        means, errors = ([100 * (one[key] or 0) for one in places.values()] for key in ("mean", "stdev"))
        axes.errorbar(list(places), means, errors, marker="o", capsize=3, label=method)
    axes.set_xscale("log")
    axes.set_xticks(sorted({*experiment.numbers, *([FULL] if whole else [])}), labels=None)
    axes.get_xaxis().set_major_formatter("{x:g}")
    axes.set_xlabel(experiment.label)
    axes.set_ylabel("top-1 in %")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def draw_scatter(axes: Any, rows: dict[str, Any], scores: dict[str, Any]) -> None:
    """Draw the students' accuracy over the quality of the layer that taught them, and that of the student alone."""
    if "alone" in rows:
        axes.axhline(100 * rows["alone"]["mean"], color="gray", linestyle="--")
        place = (0.01, 100 * rows["alone"]["mean"])
        axes.annotate("alone", place, xycoords=("axes fraction", "data"), va="bottom", fontsize="x-small")
    for tap in (tap for tap in scores if tap in rows):
        place, beside = (scores[tap]["q"], 100 * rows[tap]["mean"]), (5, 0)
        axes.plot(*place, "o", color="tab:blue")
        name = tap.removeprefix("blocks.")
        axes.annotate(name, place, beside, textcoords="offset points", va="center", fontsize="x-small")
    axes.margins(0.08)
    axes.set_xlabel("quality Q of the layer (numbers: its block)")
    axes.set_ylabel("top-1 in %")
    axes.grid(alpha=0.3)

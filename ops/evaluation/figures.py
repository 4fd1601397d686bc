"""Pictures of an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.colors import PowerNorm

from kdcore.evaluation import NUM_BINS
from pipelines.files import write_figure

COLOURS = {"student": "#2f6f9f", "teacher": "#b8752e"}
LONGEST_NAME = 24  # of a class on an axis, in characters


def reliability(content: dict[str, Any], path: Path) -> Path:
    """Draw accuracy over confidence, bin by bin, above the share of the images in each bin."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
    above.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for name, bins in content["reliability"].items():
        ece = content["metrics"][name]["ece"]
        confidence, accuracy = ([one[key] for one in bins] for key in ("confidence", "accuracy"))
        above.plot(confidence, accuracy, marker="o", markersize=4, color=COLOURS[name], label=f"{name}, ECE {ece:.2%}")
        share = [one["images"] / content["metrics"][name]["images"] for one in bins]
        width = 0.4 / NUM_BINS
        shift = width / 2 if name == "teacher" else -width / 2
        below.bar([c + shift for c in confidence], share, width=width, color=COLOURS[name])
    above.set(ylabel="accuracy", xlim=(0, 1.04), ylim=(0, 1.04))
    below.set(xlabel="confidence (mean of the bin)", ylabel="share of images")
    for axis in (above, below):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    above.legend(frameon=False)
    write_figure(path, figure, dpi=150)
    plt.close(figure)
    return path


def alignment(pairs: list[dict[str, Any]], path: Path) -> Path:
    """Draw the CKA of every tap of the student with every tap of the teacher."""
    student, teacher = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in ("student", "teacher"))
    rows = [[pair["cka"] for pair in pairs if pair["student"] == tap] for tap in student]
    figure, axis = plt.subplots(figsize=(1.8 + 0.9 * len(teacher), 1.4 + 0.7 * len(student)), layout="constrained")
    image = axis.imshow(rows, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for i, values in enumerate(rows):
        for j, value in enumerate(values):
            axis.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axis.set_xticks(range(len(teacher)), teacher, rotation=30, ha="right")
    axis.set_yticks(range(len(student)), student)
    axis.set(xlabel="teacher", ylabel="student")
    figure.colorbar(image, label="linear CKA")
    write_figure(path, figure, dpi=150)
    plt.close(figure)
    return path


def confusion(content: dict[str, Any], network: str, path: Path) -> Path:
    """Draw a network's confusion matrix, each row as shares of its class, next to the classes' recall and precision."""
    shown = content["confusion_matrix"][network]
    names, counts = [shorten(name) for name in shown["classes"]], np.array(shown["counts"], float)
    rates = {row["class"]: row[network] for row in content["classes"]}
    side = 2.5 + 0.22 * len(names)
    figure, (matrix, bars) = plt.subplots(
        1, 2, figsize=(1.6 * side, side), width_ratios=(3, 1), layout="constrained", sharey=True
    )
    totals = [(rates[name]["images"] or 1) for name in shown["classes"]]
    image = matrix.imshow(counts / np.array(totals)[:, None], norm=PowerNorm(0.5, 0, 1), cmap="Blues", aspect="auto")
    matrix.set_xticks(range(len(names)), names, rotation=90, fontsize="x-small", parse_math=False)
    matrix.set_yticks(range(len(names)), names, fontsize="x-small", parse_math=False)
    matrix.set(xlabel="taken for", ylabel="class", title=f"{network}, {content['images']}: share of a class's images")
    figure.colorbar(image, ax=matrix, location="left", shrink=0.6)
    places = np.arange(len(names))
    for shift, key, title in ((-0.2, "accuracy", "recall"), (0.2, "precision", "precision")):
        values = [rates[name][key] or 0.0 for name in shown["classes"]]
        bars.barh(places + shift, values, height=0.4, label=title)
    bars.set(xlim=(0, 1), title="by class")
    bars.legend(fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.06), frameon=False)
    bars.grid(axis="x", alpha=0.25)
    write_figure(path, figure, dpi=150)
    plt.close(figure)
    return path


def shorten(name: str) -> str:
    """Return a class's name, cut where it is too long for an axis."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"

"""Pictures of a sweep: its learning curves, the response to each number, two numbers at a time, the choices of layers.

Filled marks are runs that went to their ends, hollow ones were stopped early: those scores are of fewer epochs.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cluster.sweep.config import LogRange, Values
from cluster.sweep.plan import SweepPlan
from cluster.sweep.space import LAYERS, label
from ops.sweep.report import PointResult

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"


def plots(plan: SweepPlan, results: Sequence[PointResult]) -> list[Path]:
    """Every picture that the space allows, beside the sweep's other files."""
    scored = [result for result in results if result.mean is not None]
    if not scored:
        return []
    folder, numbers = plan.parent.run_dir, numeric_axes(plan)
    made = [curves(plan, results, folder / "curves.png")]
    if numbers:
        made.append(responses(plan, scored, numbers, folder / "response.png"))
    for first, second in itertools.combinations([n for n in numbers if isinstance(plan.space.axes[n], Values)], 2):
        made.append(heat_map(plan, scored, first, second, folder / f"heat_{first}_{second}.png".replace(" ", "_")))
    if LAYERS in plan.space.axes:
        made.append(layer_choices(plan, scored, folder / "layers.png"))
    return made


def numeric_axes(plan: SweepPlan) -> list[str]:
    """The axes whose values are numbers, more than one."""
    return [
        name
        for name, axis in plan.space.axes.items()
        if len(axis.ends) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in axis.ends)
    ]


def curves(plan: SweepPlan, results: Sequence[PointResult], path: Path) -> Path:
    """The score of every run over its epochs, the best point's in colour; a cross where a run was stopped."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for rank, result in reversed(list(enumerate(results))):
        for trial in result.trials:
            epochs = [row["epoch"] for row in trial.reports]
            scores = [row[plan.sweep.metric] for row in trial.reports]
            color, label = (BLUE, "best point") if rank == 0 else (GREY, None)
            axes.plot(epochs, scores, color=color, label=label, linewidth=1.0 + (rank == 0))
            if trial.end == "stopped":
                axes.plot(epochs[-1:], scores[-1:], "x", color="0.4")
    axes.set_xlabel("epoch")
    axes.set_ylabel(plan.sweep.metric)
    axes.set_title("runs of the best point, and of the others; x: stopped", loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.savefig(path)
    return path


def responses(plan: SweepPlan, results: Sequence[PointResult], names: Sequence[str], path: Path) -> Path:
    """One panel a number: every run, and for values of a list the mean of the runs that went to their ends."""
    figure = Figure(figsize=(4.6 * len(names), 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        for result in results:
            at = result.point[name]
            axes.plot([at] * len(result.scores), result.scores, "o", color=BLUE, alpha=0.5)
            axes.plot([at] * len(result.reached), result.reached, "o", color=BLUE, alpha=0.5, fillstyle="none")
        if isinstance(plan.space.axes[name], Values):
            means = mean_by(results, name)
            axes.plot(list(means), list(means.values()), "D-", markersize=4, color=ORANGE, label="mean of the filled")
            axes.legend(fontsize="small")
        spread_out(axes, plan, name)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(plan.sweep.metric)
    panels[0].set_title("a mark is a run; hollow: stopped early", loc="left", fontsize="medium")
    figure.savefig(path)
    return path


def mean_by(results: Sequence[PointResult], name: str) -> dict[float, float]:
    """{value of an axis: mean score of the runs there that went to their ends}, ascending."""
    found: dict[float, list[float]] = {}
    for result in results:
        found.setdefault(result.point[name], []).extend(result.scores)
    return {value: statistics.fmean(scores) for value, scores in sorted(found.items()) if scores}


def spread_out(axes: Axes, plan: SweepPlan, name: str) -> None:
    """A logarithmic scale where the values span a factor of 8 and more, or were drawn so; ticks at listed values."""
    axis = plan.space.axes[name]
    low, high = min(axis.ends), max(axis.ends)
    if isinstance(axis, LogRange) or (low > 0 and high / low >= 8):
        axes.set_xscale("log")
    if isinstance(axis, Values):
        axes.set_xticks(sorted(axis.ends), [label(value) for value in sorted(axis.ends)])
        axes.minorticks_off()


def heat_map(plan: SweepPlan, results: Sequence[PointResult], across: str, down: str, path: Path) -> Path:
    """The best mean score at every pair of values, over whatever else is searched; empty where no run went to its
    end."""
    columns, rows = (sorted(set(plan.space.axes[name].ends)) for name in (across, down))
    grid = np.full((len(rows), len(columns)), np.nan)
    for result in results:
        if result.whole and result.mean is not None:
            place = rows.index(result.point[down]), columns.index(result.point[across])
            better = max if plan.sweep.mode == "max" else min
            grid[place] = result.mean if np.isnan(grid[place]) else better(grid[place], result.mean)
    figure = Figure(figsize=(2.2 + 1.1 * len(columns), 1.8 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), [label(value) for value in columns])
    axes.set_yticks(range(len(rows)), [label(value) for value in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    for row, column in np.ndindex(grid.shape):
        value = float(grid[row, column])
        text = "stopped" if np.isnan(value) else f"{value:.4f}"
        dark = value < np.nanmin(grid) + 0.6 * (np.nanmax(grid) - np.nanmin(grid))
        axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black", fontsize="small")
    others = [name for name in plan.space.axes if name not in (across, down)]
    axes.set_title(f"best over {', '.join(others)}" if others else "", loc="left", fontsize="medium")
    figure.colorbar(image, label=plan.sweep.metric)
    figure.savefig(path)
    return path


def layer_choices(plan: SweepPlan, results: Sequence[PointResult], path: Path) -> Path:
    """A row for every choice of layers: its mean Q, and beside it the scores of its runs."""
    choices = list(by_layers(plan, results))
    places = range(len(choices))
    figure = Figure(figsize=(9.0, 1.5 + 0.45 * len(choices)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(places, [q for _, q, _, _ in choices], color=BLUE)
    left.set_yticks(places, [name for name, _, _, _ in choices])
    left.invert_yaxis()
    left.set_xlabel("mean Q of the teacher's taps")
    for place, (_, _, scores, reached) in enumerate(choices):
        right.plot(scores, [place] * len(scores), "o", color=BLUE, alpha=0.6)
        right.plot(reached, [place] * len(reached), "o", color=BLUE, alpha=0.6, fillstyle="none")
    right.set_xlabel(f"{plan.sweep.metric} (hollow: stopped early)")
    right.locator_params(axis="x", nbins=6)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path)
    return path


def by_layers(plan: SweepPlan, results: Sequence[PointResult]) -> Iterator[tuple[str, float, list[float], list[float]]]:
    """(choice, Q, scores at the end, scores of stopped runs), the highest Q first."""
    quality = plan.scores
    assert quality is not None, "measured where layers are searched"
    for pairs in sorted(plan.space.axes[LAYERS].ends, key=lambda pairs: -quality.of(pairs)):
        here = [result for result in results if result.point[LAYERS] == pairs]
        scores = [score for result in here for score in result.scores]
        reached = [score for result in here for score in result.reached]
        yield label(pairs), quality.of(pairs), scores, reached

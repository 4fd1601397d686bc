"""Pictures of a sweep: its learning curves, the response to each number, two numbers at a time, the choices of layers.

Filled marks are finished runs; hollow ones were stopped early, so their scores are from fewer epochs. What the
responses and the heat maps show is decided in `ops.response`; here it is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Scale
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cluster.score_text import is_rate, score_text
from cluster.sweep.axes import LAYERS, Axis, LogRange, Values
from cluster.sweep.plan import SweepPlan
from cluster.sweep.space import label
from ops.response import HeatMap, heat_maps, is_logarithmic, response
from ops.sweep.report import PointResult
from pipelines.files import write_figure

BLUE, ORANGE, GREY = "tab:blue", "tab:orange", "0.7"
MARKERS = "os^Dvp"  # of runs, in turn, so that two runs of equal scores show
MARKS = 20  # on a curve, at most


def plots(plan: SweepPlan, results: Sequence[PointResult]) -> list[Path]:
    """Draw every picture that the space allows, next to the sweep's other files."""
    if not any(result.scores or result.reached for result in results):
        return []
    folder, numbers = plan.parent.run_dir, numeric_axes(plan)
    made = [curves(plan, results, folder / "curves.png")]
    if numbers:
        made.append(responses(plan, results, numbers, folder / "response.png"))
    for one in heat_maps(results, numbers, plan.sweep.mode):
        path = folder / f"heat_{one.across}_{one.up}.png".replace(" ", "_")
        made.append(draw_heat_map(one, plan.sweep.metric, path))
    if LAYERS in plan.space.axes:
        made.append(layer_choices(plan, results, folder / "layers.png"))
    return made


def numeric_axes(plan: SweepPlan) -> list[str]:
    """Return the axes whose values are numbers, more than one."""
    return [
        name
        for name, axis in plan.space.axes.items()
        if len(axis.ends) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in axis.ends)
    ]


def curves(plan: SweepPlan, results: Sequence[PointResult], path: Path) -> Path:
    """Draw the score of every run over its epochs, the best point's in colour; a cross where a run was stopped."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    runs = [(rank, trial) for rank, result in reversed(list(enumerate(results))) for trial in result.trials]
    for (rank, trial), marker in zip(runs, cycle(MARKERS), strict=False):
        epochs = [row["epoch"] for row in trial.reports]
        scores = [row[plan.sweep.metric] for row in trial.reports]
        color, label = (BLUE, "best point") if rank == 0 else (GREY, None)
        (line,) = axes.plot(epochs, scores, color=color, label=label, linewidth=1.0 + (rank == 0))
        line.set(marker=marker, fillstyle="none", markevery=1 + len(epochs) // MARKS)
        if trial.end == "stopped":
            axes.plot(epochs[-1:], scores[-1:], "x", color="0.4")
    axes.set_xlabel("epoch")
    label_scores(axes.yaxis, plan.sweep.metric)
    axes.set_title("runs of the best point, and of the others; x: stopped", loc="left", fontsize="medium")
    axes.grid(alpha=0.3)
    write_figure(path, figure)
    return path


def responses(plan: SweepPlan, results: Sequence[PointResult], names: Sequence[str], path: Path) -> Path:
    """Draw a panel for each number: every run, and the best that was reached at each value."""
    figure = Figure(figsize=(4.6 * len(names), 4.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, names, strict=True):
        shown = response(results, name, plan.sweep.mode)
        for marks, fill in ((shown.runs, "full"), (shown.stopped, "none")):
            axes.plot(*by_axis(marks), "o", color=BLUE, alpha=0.5, fillstyle=fill)
        axes.plot(*by_axis(shown.best), "D-", markersize=4, color=ORANGE)
        scale_to_values(axes, plan.space.axes[name])
        axes.set_xlabel(name)
        axes.set_title(textwrap.fill(shown.caption, 58), loc="left", fontsize="small")
        axes.grid(alpha=0.3)
    label_scores(panels[0].yaxis, plan.sweep.metric)
    write_figure(path, figure)
    return path


def by_axis(marks: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return the values and the scores of marks."""
    return [x for x, _ in marks], [y for _, y in marks]


def label_scores(scale: Scale, metric: str, remark: str = "") -> None:
    """Label a scale with the metric, and show a rate in percent."""
    scale.set_label_text(metric + remark)
    if is_rate(metric):
        scale.set_major_formatter(PercentFormatter(1.0))


def scale_to_values(axes: Axes, axis: Axis) -> None:
    """Use a logarithmic scale where values are far apart or drawn log-uniformly, and ticks at the values of a list."""
    if isinstance(axis, LogRange) or is_logarithmic(axis.ends):
        axes.set_xscale("log")
    if isinstance(axis, Values):
        axes.set_xticks(sorted(axis.ends), [label(value) for value in sorted(axis.ends)])
        axes.minorticks_off()


def draw_heat_map(shown: HeatMap, metric: str, path: Path) -> Path:
    """Draw the scores over two numbers together."""
    grid = np.ma.masked_invalid(np.array(shown.cells, dtype=float))  # None becomes nan
    figure = Figure(figsize=(2.8 + 1.1 * len(shown.columns), 2.0 + 0.8 * len(shown.rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(shown.columns)), [label(value) for value in shown.columns])
    axes.set_yticks(range(len(shown.rows)), [label(value) for value in shown.rows])
    axes.set_xlabel(shown.across)
    axes.set_ylabel(shown.up)
    lighter_from = grid.min() + 0.6 * (grid.max() - grid.min())
    for (row, column), score in np.ma.ndenumerate(grid):
        color = "white" if score < lighter_from else "black"
        axes.text(column, row, score_text(metric, score), ha="center", va="center", color=color, fontsize="small")
    axes.set_title(textwrap.fill(shown.caption, 18 + 14 * len(shown.columns)), loc="left", fontsize="small")
    label_scores(figure.colorbar(image).ax.yaxis, metric)
    write_figure(path, figure)
    return path


def layer_choices(plan: SweepPlan, results: Sequence[PointResult], path: Path) -> Path:
    """Draw a row for every choice of layers: its mean Q, and next to it the scores of its runs."""
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
    label_scores(right.xaxis, plan.sweep.metric, " (hollow: stopped early)")
    right.locator_params(axis="x", nbins=6)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    write_figure(path, figure)
    return path


def by_layers(plan: SweepPlan, results: Sequence[PointResult]) -> Iterator[tuple[str, float, list[float], list[float]]]:
    """Yield (choice, Q, scores at the end, scores of stopped runs), the highest Q first."""
    quality = plan.scores
    assert quality is not None, "measured where layers are searched"
    for pairs in sorted(plan.space.axes[LAYERS].ends, key=lambda pairs: -quality.of(pairs)):
        here = [result for result in results if result.point[LAYERS] == pairs]
        scores = [score for result in here for score in result.scores]
        reached = [score for result in here for score in result.reached]
        yield label(pairs), quality.of(pairs), scores, reached

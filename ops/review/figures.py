"""The figures of the review page, as plotly's JSON; colours of axes and text are the page's, set in the browser.

What the responses and the heat maps show is decided in `ops.response`; here it is drawn.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from cluster.metric_names import mode_of
from cluster.score_text import is_rate
from ops.history import Run
from ops.response import HeatMap, Response, ScoredPoint, heat_maps, is_logarithmic, response, values_of
from ops.review.groups import Row

PALETTE = ("#3d85b8", "#c8743a", "#4d9d6b", "#a8609c", "#97913a", "#cf5566", "#6a72c4", "#7d8590")
TOOLS = 24  # pixels above a plot, where its tool bar appears
Points = Sequence[tuple[int, float]]
Histories = Mapping[str, Mapping[str, Points]]  # {run id: {metric: (step, value), ...}}


@dataclass(frozen=True)
class Figure:
    """key: the element's id; json: data and layout."""

    key: str
    title: str
    note: str
    json: str


def figure(key: str, title: str, note: str, traces: Sequence[Any], **layout: Any) -> Figure:
    """Make a figure with a plot of fixed height, and a line of legend below it for every named trace."""
    named = sum(1 for trace in traces if trace.name and trace.showlegend is not False)
    below = 56 + 22 * named
    size = {"height": 290 + TOOLS + below, "margin": {"l": 60, "r": 20, "t": 12 + TOOLS, "b": below}}
    made = go.Figure(list(traces), {**size, "showlegend": named > 0, **layout})
    content = json.loads(made.to_json())
    content["layout"].pop("template", None)
    # Within a script element, "<!--<script>" would swallow the page up to its end, and "</script>" end the element.
    return Figure(key, title, note, json.dumps(content).replace("<", "\\u003c"))


def colour(number: int) -> str:
    """Return the colour of the first, second, ... of several curves."""
    return PALETTE[number % len(PALETTE)]


def with_opacity(hexadecimal: str, opacity: float) -> str:
    """Return a colour, given as #rrggbb, with an opacity."""
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def curves(rows: Sequence[Row], histories: Histories, metric: str, title: str, percent: bool) -> Figure | None:
    """Draw the mean of every group over its seeds, with the range of the seeds as a band."""
    traces: list[Any] = []
    for number, row in enumerate(rows):
        runs = row.group.repetitions(metric).values()
        seeds = [dict(histories[run.run_id].get(metric, ())) for run in runs]
        steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
        if not steps:
            continue
        means = [statistics.mean(seed[step] for seed in seeds) for step in steps]
        high, low = ([bound(seed[step] for seed in seeds) for step in steps] for bound in (max, min))
        common = {"legendgroup": row.key, "mode": "lines"}
        if len(seeds) > 1:
            band = {**common, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            traces.append(go.Scatter(x=steps, y=high, **band))
            traces.append(
                go.Scatter(x=steps, y=low, fill="tonexty", fillcolor=with_opacity(colour(number), 0.16), **band)
            )
        name = f"{row.label} (n = {len(seeds)})"
        traces.append(go.Scatter(x=steps, y=means, name=name, line={"color": colour(number), "width": 2}, **common))
    if not traces:
        return None
    key = f"curve-{metric.replace('/', '-')}"
    note = "Mean over seeds; the band is their range. Click a name to hide it."
    return figure(key, title, note, traces, **curve_axes(percent))


def pair_curves(runs: Sequence[Run], histories: Histories, metric: str, title: str, percent: bool) -> Figure | None:
    """Draw one curve for each of two runs."""
    traces = [
        go.Scatter(
            x=[step for step, _ in points],
            y=[value for _, value in points],
            name=run.name,
            mode="lines",
            line={"color": colour(number), "width": 2},
        )
        for number, run in enumerate(runs)
        if (points := histories[run.run_id].get(metric, ()))
    ]
    key = f"pair-{metric.replace('/', '-')}"
    return figure(key, title, "", traces, **curve_axes(percent)) if traces else None


def curve_axes(percent: bool) -> dict[str, Any]:
    """Return the axes of a curve over steps: rates in percent, losses by powers of ten."""
    upward = {"tickformat": ".0%"} if percent else {"type": "log", "dtick": 1}
    return {"xaxis": {"title": {"text": "step"}}, "yaxis": upward, "hovermode": "x unified"}


def responses(key: str, points: Sequence[ScoredPoint], metric: str) -> list[Figure]:
    """Draw the score over every field, one figure each, and over each pair of numeric fields as a heat map."""
    fields, mode = list(points[0].point), mode_of(metric)
    drawn = [response_figure(f"{key}-{n}", response(points, field, mode), metric) for n, field in enumerate(fields)]
    numeric = [field for field in fields if are_numbers(values_of(points, field))]
    maps = [map_figure(f"{key}-map{n}", one, metric) for n, one in enumerate(heat_maps(points, numeric, mode))]
    return drawn + maps


def are_numbers(values: Sequence[Any]) -> bool:
    """Return whether all values of a field are numbers."""
    return all(isinstance(value, float) for value in values)


def response_figure(key: str, shown: Response, metric: str) -> Figure:
    """Draw the scores over one field: a mark for every run, a line through the best."""
    traces = []
    for name, marks, symbol in (("run", shown.runs, "circle"), ("stopped early", shown.stopped, "circle-open")):
        marker = {"color": with_opacity(PALETTE[0], 0.7), "size": 7, "symbol": symbol}
        traces.append(go.Scatter(**by_axis(marks), name=name, mode="markers", marker=marker, showlegend=False))
    line = {"color": PALETTE[1], "width": 2}
    traces.append(go.Scatter(**by_axis(shown.best), name="best", mode="lines+markers", line=line, showlegend=False))
    layout = {"xaxis": value_axis(shown), "yaxis": score_axis(metric)}
    return figure(key, f"{metric} over {shown.field}", shown.caption, traces, **layout)


def by_axis(marks: Sequence[tuple[Any, float]]) -> dict[str, list[Any]]:
    """Return the values and the scores of marks, as plotly takes them."""
    return {"x": [x for x, _ in marks], "y": [y for _, y in marks]}


def value_axis(shown: Response) -> dict[str, Any]:
    """Return the axis of a field: numbers by size, with a tick at each if they are few, anything else side by side."""
    axis: dict[str, Any] = {"title": {"text": shown.field}, "type": "category"}
    values = sorted({value for value, _ in (*shown.runs, *shown.stopped)})
    if are_numbers(values):
        axis["type"] = "log" if is_logarithmic(values) else "linear"
        axis |= {"tickvals": values, "ticktext": [f"{value:g}" for value in values]} if len(values) < 12 else {}
    return axis


def score_axis(metric: str) -> dict[str, Any]:
    """Return how an axis shows a metric: a rate as a percentage."""
    return {"tickformat": ".1%"} if is_rate(metric) else {"tickformat": ".4g"}


def map_figure(key: str, shown: HeatMap, metric: str) -> Figure:
    """Draw the scores over two fields together."""
    form = "{:.1%}" if is_rate(metric) else "{:.4g}"
    texts = [["" if score is None else form.format(score) for score in row] for row in shown.cells]
    trace = go.Heatmap(
        x=[f"{value:g}" for value in shown.columns],
        y=[f"{value:g}" for value in shown.rows],
        z=shown.cells,
        text=texts,
        texttemplate="%{text}",
        colorscale="Blues",
        colorbar=score_axis(metric) | {"outlinewidth": 0, "thickness": 12},
    )
    across = {"title": {"text": shown.across}, "type": "category"}
    up = {"title": {"text": shown.up}, "type": "category"}
    title = f"{metric} over {shown.across} and {shown.up}"
    return figure(key, title, shown.caption, [trace], xaxis=across, yaxis=up)


def parallel(key: str, points: Sequence[ScoredPoint], metric: str) -> Figure:
    """Draw every finished run as a line through its values and its score."""
    runs = [(point.point, score) for point in points for score in point.scores]
    scores = [score for _, score in runs]
    dimensions = [dimension(field, [point[field] for point, _ in runs]) for field in points[0].point]
    dimensions.append({"label": metric, "values": scores, **score_axis(metric)})
    line = {"color": scores, "colorscale": "Viridis", "showscale": False}
    layout = {"height": 340, "margin": {"l": 80, "r": 60, "t": 50, "b": 20}}
    note = "A line is a run. Drag along an axis to keep a part of it."
    return figure(key, "Parallel coordinates", note, [go.Parcoords(line=line, dimensions=dimensions)], **layout)


def dimension(field: str, values: Sequence[Any]) -> dict[str, Any]:
    """Return an axis with the values in order, at equal distances."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    texts = [f"{value:g}" if isinstance(value, float) else value for value in places]
    return {
        "label": field,
        "values": [places[value] for value in values],
        "tickvals": list(places.values()),
        "ticktext": [text if len(text) < 24 else f"{text[:22]}…" for text in texts],
        "range": [0, len(places) - 1],
    }


def class_differences(names: Sequence[str], images: str, classes: Sequence[tuple[str, float]]) -> Figure:
    """Draw by how many points of accuracy the second run is better, class by class, sorted. images: what they saw."""
    ordered = sorted(classes, key=lambda item: item[1])
    colours = [PALETTE[2] if value >= 0 else PALETTE[5] for _, value in ordered]
    points = [100 * value for _, value in ordered]
    trace = go.Bar(x=[name for name, _ in ordered], y=points, marker={"color": colours})
    places = {"xaxis": {"type": "category"}, "yaxis": {"ticksuffix": " "}}
    title = f"Accuracy by class: {names[1]} minus {names[0]}"
    return figure("pair-classes", title, f"On {images}, in points.", [trace], **places)

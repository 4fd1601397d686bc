"""The figures of the review page, as plotly's JSON; colours of axes and text are the page's, set in the browser."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from ops.history import Run
from ops.review.groups import Row, field_name, number_of

PALETTE = ("#3d85b8", "#c8743a", "#4d9d6b", "#a8609c", "#97913a", "#cf5566", "#6a72c4", "#7d8590")
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
    """A figure with a plot of one height, and a line of legend below it for every named trace."""
    named = sum(1 for trace in traces if trace.name and trace.showlegend is not False)
    below = 56 + 22 * named
    size = {"height": 290 + below, "margin": {"l": 60, "r": 20, "t": 12, "b": below}}
    made = go.Figure(list(traces), {**size, "showlegend": named > 0, **layout})
    content = json.loads(made.to_json())
    content["layout"].pop("template", None)
    return Figure(key, title, note, json.dumps(content).replace("</", "<\\/"))


def colour(number: int) -> str:
    return PALETTE[number % len(PALETTE)]


def faint(hexadecimal: str, opacity: float) -> str:
    red, green, blue = (int(hexadecimal[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def curves(rows: Sequence[Row], histories: Histories, metric: str, title: str, percent: bool) -> Figure | None:
    """The mean of every group over its seeds, above the range of the seeds."""
    traces: list[Any] = []
    for number, row in enumerate(rows):
        seeds = [dict(histories[run.run_id].get(metric, ())) for run in row.group.runs]
        steps = sorted(set.intersection(*(set(seed) for seed in seeds))) if seeds else []
        if not steps:
            continue
        means = [statistics.mean(seed[step] for seed in seeds) for step in steps]
        high, low = ([bound(seed[step] for seed in seeds) for step in steps] for bound in (max, min))
        common = {"legendgroup": row.key, "mode": "lines"}
        if len(seeds) > 1:
            band = {**common, "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            traces.append(go.Scatter(x=steps, y=high, **band))
            traces.append(go.Scatter(x=steps, y=low, fill="tonexty", fillcolor=faint(colour(number), 0.16), **band))
        name = f"{row.label} (n = {len(seeds)})"
        traces.append(go.Scatter(x=steps, y=means, name=name, line={"color": colour(number), "width": 2}, **common))
    if not traces:
        return None
    key = f"curve-{metric.replace('/', '-')}"
    note = "Mean over seeds; the band is their range. Click a name to hide it."
    return figure(key, title, note, traces, **axes(percent))


def pair_curves(runs: Sequence[Run], histories: Histories, metric: str, title: str, percent: bool) -> Figure | None:
    """One curve for each of two runs."""
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
    return figure(key, title, "", traces, **axes(percent)) if traces else None


def axes(percent: bool) -> dict[str, Any]:
    """Of a curve over steps: rates in percent, losses by powers of ten."""
    upward = {"tickformat": ".0%"} if percent else {"type": "log", "dtick": 1}
    return {"xaxis": {"title": {"text": "step"}}, "yaxis": upward, "hovermode": "x unified"}


def responses(key: str, runs: Sequence[Run], fields: Mapping[str, list[str]], metric: str) -> list[Figure]:
    """The score over every field, one figure a field; over two that are numbers together as a heat map."""
    made = [response(f"{key}-{n}", runs, field, values, metric) for n, (field, values) in enumerate(fields.items())]
    numeric = [field for field, values in fields.items() if are_numbers(values)]
    if len(numeric) == 2:
        made.append(heat_map(f"{key}-map", runs, (numeric[0], numeric[1]), metric))
    return made


def are_numbers(values: Sequence[str]) -> bool:
    return all(number_of(value) is not None for value in values)


def response(key: str, runs: Sequence[Run], field: str, values: list[str], metric: str) -> Figure:
    """Every run as a point, and the mean of those that share a value."""
    scores = {value: [run.metrics[metric] for run in runs if run.fields.get(field, "-") == value] for value in values}
    places: list[Any] = [float(value) for value in values] if are_numbers(values) else values
    points = [(place, score) for place, value in zip(places, values, strict=True) for score in scores[value]]
    dots = {"mode": "markers", "marker": {"color": faint(PALETTE[0], 0.7), "size": 7}, "showlegend": False}
    line = {"mode": "lines+markers", "line": {"color": PALETTE[1], "width": 2}, "showlegend": False}
    means = [statistics.mean(scores[value]) for value in values]
    traces = [
        go.Scatter(x=[x for x, _ in points], y=[y for _, y in points], name="run", **dots),
        go.Scatter(x=places, y=means, name="mean", **line),
    ]
    name = field_name(field, runs[0])
    across = {"title": {"text": name}, "type": "category"}
    if are_numbers(values):
        across["type"] = "log" if places[0] > 0 and places[-1] / places[0] >= 8 else "linear"
        across |= {"tickvals": places, "ticktext": [f"{place:g}" for place in places]} if len(places) < 12 else {}
    layout = {"xaxis": across, "yaxis": {"tickformat": ".1%"}}
    return figure(key, f"{metric} over {name}", "Points are runs, the line their mean.", traces, **layout)


def heat_map(key: str, runs: Sequence[Run], fields: tuple[str, str], metric: str) -> Figure:
    """The mean score over two fields."""
    cells: dict[tuple[float, float], list[float]] = defaultdict(list)
    for run in runs:
        cells[float(run.fields[fields[0]]), float(run.fields[fields[1]])].append(run.metrics[metric])
    across, up = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    means = [[statistics.mean(cells[x, y]) if (x, y) in cells else None for x in across] for y in up]
    shown = [["" if mean is None else f"{mean:.1%}" for mean in line] for line in means]
    x_name, y_name = (field_name(field, runs[0]) for field in fields)
    labels = [[f"{value:g}" for value in values] for values in (across, up)]
    bar = {"tickformat": ".1%", "outlinewidth": 0, "thickness": 12}
    trace = go.Heatmap(
        x=labels[0], y=labels[1], z=means, text=shown, texttemplate="%{text}", colorscale="Blues", colorbar=bar
    )
    places = {
        "xaxis": {"title": {"text": x_name}, "type": "category"},
        "yaxis": {"title": {"text": y_name}, "type": "category"},
    }
    return figure(key, f"{metric} over {x_name} and {y_name}", "Means over seeds.", [trace], **places)


def parallel(key: str, runs: Sequence[Run], fields: Mapping[str, list[str]], metric: str) -> Figure:
    """Every run as a line through its values and its score. Drag along an axis to keep a part of it."""
    scores = [run.metrics[metric] for run in runs]
    dimensions = [dimension(field, values, runs) for field, values in fields.items()]
    dimensions.append({"label": metric, "values": scores, "tickformat": ".1%"})
    line = {"color": scores, "colorscale": "Viridis", "showscale": False}
    layout = {"height": 340, "margin": {"l": 80, "r": 60, "t": 50, "b": 20}}
    note = "A line is a run. Drag along an axis to keep a part of it."
    return figure(key, "Parallel coordinates", note, [go.Parcoords(line=line, dimensions=dimensions)], **layout)


def dimension(field: str, values: list[str], runs: Sequence[Run]) -> dict[str, Any]:
    """An axis: the values by size where they are numbers far apart, else by their place."""
    places = {value: place for place, value in enumerate(values)}
    return {
        "label": field_name(field, runs[0]),
        "values": [places[run.fields.get(field, "")] for run in runs],
        "tickvals": list(places.values()),
        "ticktext": [value if len(value) < 24 else f"{value[:22]}…" for value in values],
        "range": [0, len(values) - 1],
    }


def class_differences(names: Sequence[str], classes: Sequence[tuple[str, float]]) -> Figure:
    """By how many points of accuracy the second run is better, class by class, sorted."""
    ordered = sorted(classes, key=lambda item: item[1])
    colours = [PALETTE[2] if value >= 0 else PALETTE[5] for _, value in ordered]
    points = [100 * value for _, value in ordered]
    trace = go.Bar(x=[name for name, _ in ordered], y=points, marker={"color": colours})
    places = {"xaxis": {"type": "category"}, "yaxis": {"ticksuffix": " "}}
    title = f"Accuracy by class: {names[1]} minus {names[0]}"
    return figure("pair-classes", title, "On the validation images, in points.", [trace], **places)

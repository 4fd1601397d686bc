"""How a score responds to the searched fields: the numbers of a figure, which one of two libraries then draws.

`ops.sweep.plots` draws them with matplotlib when a sweep ends, `ops.review.figures` with plotly on the review page.
What a figure shows, and what its caption says, is decided only here.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.metric_names import Mode

LOGARITHMIC_FROM = 8  # the largest value divided by the smallest


@dataclass(frozen=True, kw_only=True)
class ScoredPoint:
    """A point of a search, {field: value}, with the scores of its runs, one per seed.

    scores: of the finished runs; reached: the last score of others that have one, which were stopped early or are under
    way; num_runs: all of them, including failed ones.
    """

    point: dict[str, Any]
    scores: Sequence[float]
    reached: Sequence[float] = ()
    num_runs: int

    @property
    def whole(self) -> bool:
        """Whether every seed finished, so that the mean can be compared."""
        return len(self.scores) == self.num_runs

    @property
    def mean(self) -> float | None:
        """The mean over seeds, of all that have a score."""
        scores = [*self.scores, *self.reached]
        return statistics.fmean(scores) if scores else None


@dataclass(frozen=True)
class Response:
    """The scores over one field.

    runs: (value, score) of every finished run; stopped: of the others; best: (value, best mean) by value, empty where a
    line through them would only join single points of a larger search.
    """

    field: str
    runs: Sequence[tuple[Any, float]]
    stopped: Sequence[tuple[Any, float]]
    best: Sequence[tuple[Any, float]]
    caption: str


@dataclass(frozen=True)
class HeatMap:
    """The best mean score at every pair of values: cells[row][column], None where no point finished."""

    across: str
    up: str
    columns: Sequence[Any]
    rows: Sequence[Any]
    cells: Sequence[Sequence[float | None]]
    caption: str


def best_means(points: Iterable[ScoredPoint], fields: Sequence[str], mode: Mode) -> dict[tuple[Any, ...], float]:
    """Return {values of some fields: score}: the mean over a point's seeds, then the best over all other fields.

    Only points whose runs all finished count: a score from fewer epochs, or from the lucky seeds, is not comparable.
    """
    better = max if mode == "max" else min
    found: dict[tuple[Any, ...], float] = {}
    for point in points:
        if point.whole and point.mean is not None:
            values = tuple(point.point[field] for field in fields)
            found[values] = better(found.get(values, point.mean), point.mean)
    return found


def response(points: Sequence[ScoredPoint], field: str, mode: Mode) -> Response:
    """Return the scores over one field."""
    runs = [(point.point[field], score) for point in points for score in point.scores]
    stopped = [(point.point[field], score) for point in points for score in point.reached]
    values = values_of(points, field)
    best = best_means(points, [field], mode)
    joined = len(values) < len(points) or len(points[0].point) == 1
    line = [(value, best[value,]) for value in values if (value,) in best] if joined else []
    marks = "A mark is a run" + ("; hollow: stopped early." if stopped else ".")
    caption = f"{marks} The line is the {aggregation(points, [field])}." if line else marks
    return Response(field, runs, stopped, line, caption)


def heat_map(points: Sequence[ScoredPoint], across: str, up: str, mode: Mode) -> HeatMap:
    """Return the scores over two fields together."""
    columns, rows = values_of(points, across), values_of(points, up)
    best = best_means(points, [across, up], mode)
    cells = [[best.get((column, row)) for column in columns] for row in rows]
    caption = aggregation(points, [across, up])
    empty = " Empty: no point there finished with every seed." if len(best) < len(columns) * len(rows) else ""
    return HeatMap(across, up, columns, rows, cells, f"{caption[0].upper()}{caption[1:]}.{empty}")


def heat_maps(points: Sequence[ScoredPoint], fields: Sequence[str], mode: Mode) -> list[HeatMap]:
    """Return the scores over each pair of fields whose values several points share, where there are scores."""
    shared = [field for field in fields if len(values_of(points, field)) < len(points)]
    made = [heat_map(points, across, up, mode) for across, up in itertools.combinations(shared, 2)]
    return [one for one in made if any(score is not None for row in one.cells for score in row)]


def aggregation(points: Sequence[ScoredPoint], fields: Sequence[str]) -> str:
    """Return in words what `best_means` does to the runs at a value of some fields."""
    others = [name for name in points[0].point if name not in fields]
    return "mean over seeds" + (f", then the best over {', '.join(others)}" if others else "")


def values_of(points: Iterable[ScoredPoint], field: str) -> list[Any]:
    """Return the values of a field among the points, in order."""
    return sorted({point.point[field] for point in points})


def is_logarithmic(values: Sequence[float]) -> bool:
    """Return whether values are so far apart that only a logarithmic scale shows them all."""
    return min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM

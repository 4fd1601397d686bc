"""The sweeps among the runs of an experiment, as points with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlflow

from cluster.sweep.tracking import POINT, TRIAL
from ops.history import Run
from ops.response import ScoredPoint
from ops.review import figures
from ops.review.figures import Figure
from ops.review.groups import field_name, parse_number


@dataclass(frozen=True)
class ReviewedSweep:
    """A sweep on the page. stopped: the number of its runs that did not finish."""

    name: str
    points: Sequence[ScoredPoint]
    stopped: int
    figures: Sequence[Figure]

    @property
    def finished(self) -> int:
        """The number of its runs that finished."""
        return sum(len(point.scores) for point in self.points)

    @property
    def fields(self) -> list[str]:
        """The searched fields."""
        return list(self.points[0].point)


def sweeps_of(client: mlflow.MlflowClient, runs: Sequence[Run], metric: str) -> list[ReviewedSweep]:
    """Return every sweep among the runs that has searched something and has a finished run."""
    parents = dict.fromkeys(run.parent for run in runs if run.parent)
    found = []
    for number, parent in enumerate(parents):
        children = [run for run in runs if run.parent == parent and TRIAL in run.tags]
        points = scored_points(children, metric)
        if not points or not points[0].point or not any(point.scores for point in points):
            continue
        key, name = f"sweep-{number}", client.get_run(parent).info.run_name or parent
        drawn = [*figures.responses(key, points, metric), figures.parallel(f"{key}-all", points, metric)]
        finished = sum(len(point.scores) for point in points)
        found.append(ReviewedSweep(name, points, len(children) - finished, drawn))
    return found


def scored_points(runs: Sequence[Run], metric: str) -> list[ScoredPoint]:
    """Return the points that a sweep's runs stand for, each with the runs of its seeds."""
    values = values_by_axis(runs)
    groups: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(run.tags[TRIAL].rpartition("-seed")[0], []).append(number)
    return [
        scored_point({axis: column[numbers[0]] for axis, column in values.items()}, [runs[n] for n in numbers], metric)
        for numbers in groups.values()
    ]


def scored_point(point: dict[str, Any], runs: Sequence[Run], metric: str) -> ScoredPoint:
    """Return a point with what its runs have reached in a metric."""
    return ScoredPoint(
        point=point,
        scores=[run.metrics[metric] for run in runs if has_finished(run, metric)],
        reached=[
            run.metrics[metric] for run in runs if metric in run.metrics and run.status not in ("FINISHED", "FAILED")
        ],
        num_runs=len(runs),
    )


def has_finished(run: Run, metric: str) -> bool:
    """Return whether a run finished, with the metric."""
    return run.status == "FINISHED" and metric in run.metrics


def values_by_axis(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return {axis's name for display: its value in every run} of a sweep's axes that have several values.

    The values are floats where all values of an axis are numbers.
    """
    axes = sorted({tag.removeprefix(POINT) for run in runs for tag in run.tags if tag.startswith(POINT)})
    short = {axis: field_name(axis, runs[0]) for axis in axes}
    names = short if len(set(short.values())) == len(axes) else {axis: axis for axis in axes}
    columns: dict[str, list[Any]] = {}
    for axis in axes:
        texts = [axis_value(run, axis) for run in runs]
        numbers = [parse_number(text) for text in texts]
        if len(set(texts)) > 1:
            columns[names[axis]] = texts if None in numbers else numbers
    return columns


def axis_value(run: Run, axis: str) -> str:
    """Return the value of an axis in a run: a field's whole, of others what the tag says in short."""
    return run.recipe.get(axis, run.tags.get(f"{POINT}{axis}", "-"))

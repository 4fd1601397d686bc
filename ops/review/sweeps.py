"""The sweeps among the runs of an experiment, as points with their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlflow

from ops.history import Run
from ops.response import ScoredPoint
from ops.review import figures
from ops.review.figures import Figure
from ops.review.groups import field_name, parse_number, varied_fields


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
        children = [run for run in runs if run.parent == parent]
        points = scored_points(children, metric)
        if not points or not points[0].point or not any(point.scores for point in points):
            continue
        key, name = f"sweep-{number}", client.get_run(parent).info.run_name or parent
        drawn = [*figures.responses(key, points, metric), figures.parallel(f"{key}-all", points, metric)]
        finished = sum(len(point.scores) for point in points)
        found.append(ReviewedSweep(name, points, len(children) - finished, drawn))
    return found


def scored_points(runs: Sequence[Run], metric: str) -> list[ScoredPoint]:
    """Return the points that a sweep's runs stand for: runs that differ only in their seed are one point."""
    values = values_by_field(runs)
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(tuple(column[number] for column in values.values()), []).append(run)
    return [
        ScoredPoint(
            point=dict(zip(values, point, strict=True)),
            scores=[run.metrics[metric] for run in group if has_finished(run, metric)],
            reached=[
                run.metrics[metric]
                for run in group
                if metric in run.metrics and run.status not in ("FINISHED", "FAILED")
            ],
            num_runs=len(group),
        )
        for point, group in groups.items()
    ]


def has_finished(run: Run, metric: str) -> bool:
    """Return whether a run finished, with the metric."""
    return run.status == "FINISHED" and metric in run.metrics


def values_by_field(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return {field's name for display: its value in every run} of the fields in which runs differ.

    The values are floats where all values of a field are numbers.
    """
    fields = list(varied_fields(runs))
    short = {field: field_name(field, runs[0]) for field in fields}
    names = short if len(set(short.values())) == len(fields) else {field: field for field in fields}
    columns = {}
    for field in fields:
        texts = [run.fields.get(field, "-") for run in runs]
        numbers = [parse_number(text) for text in texts]
        columns[names[field]] = texts if None in numbers else numbers
    return columns

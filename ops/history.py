"""The runs that MLflow holds, as plain values: which belong together, and what they reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import mlflow
from mlflow.entities import LifecycleStage
from mlflow.entities import Run as MlflowRun

from cluster.config import RunConfig
from cluster.tracking.mlflow_tracker import CONSTANTS
from kdcore.errors import Refused
from ops.defaults import with_defaults

# What of a recipe may differ between runs that are repetitions of one another.
INCIDENTAL = {"name", "seed", "view_seed", "output_dir", *RunConfig.INCIDENTAL}
PARENT = "mlflow.parentRunId"
DEPLOYED = "deployed/"  # before the names of what was measured of weights that were chosen


def of_deployed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a run's metrics with validations that are of its deployed weights, where those are not the last ones."""
    own = {name: value for name, value in metrics.items() if not name.startswith(DEPLOYED)}
    chosen = {name.removeprefix(DEPLOYED): value for name, value in metrics.items() if name.startswith(DEPLOYED)}
    return own | chosen


@dataclass(frozen=True)
class Run:
    """One training run.

    recipe: its resolved fields as they were logged, flat, as text; metrics: the last of each, as in `of_deployed`, and
    the numbers that no step changes.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    started: float
    recipe: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]

    @classmethod
    def of(cls, run: MlflowRun) -> Run:
        """Read MLflow's own record."""
        return cls(
            run_id=run.info.run_id,
            experiment_id=run.info.experiment_id,
            name=run.data.params.get("name") or run.info.run_name or run.info.run_id,
            status=run.info.status,
            started=(run.info.start_time or 0) / 1000,
            recipe=dict(run.data.params),
            tags=dict(run.data.tags),
            metrics=constants(run.data.tags) | of_deployed(run.data.metrics),
        )

    @cached_property
    def fields(self) -> dict[str, str]:
        """What of the recipe decides the result, but for the seed; a field that is None is not there.

        Fields that recipes have got since the run have their defaults, so that it stays one with those that came later.
        """
        return {
            key: value
            for key, value in with_defaults(self.recipe).items()
            if value != "None" and key.split(".")[0] not in INCIDENTAL
        }

    @property
    def seed(self) -> str:
        """The seed, as text."""
        return self.recipe.get("seed", "")

    @property
    def view_seed(self) -> str:
        """The seed of the views, as text: the run's own unless the recipe gives another."""
        given = self.recipe.get("view_seed", "None")
        return self.seed if given == "None" else given

    @property
    def method(self) -> str:
        """The names of the method's terms, such as ce+kd."""
        return self.tags.get("method", "")

    @property
    def outcome(self) -> str:
        """How the run ended; of a sweep's trial, what the sweep decided."""
        return self.tags.get("sweep.decision", self.status.lower())

    @property
    def parent(self) -> str | None:
        """The id of the sweep that the run belongs to, if any."""
        return self.tags.get(PARENT)


def constants(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a run that no step changes, which are tags in MLflow."""
    found = {name: value for name, value in tags.items() if name.startswith(CONSTANTS) and value != "-"}
    return {name: float(value) for name, value in found.items()}


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in their seeds."""

    runs: tuple[Run, ...]

    @property
    def fields(self) -> dict[str, str]:
        """What of the recipe decides the result, but for the seed."""
        return self.runs[0].fields

    @property
    def method(self) -> str:
        """The names of the method's terms, such as ce+kd."""
        return self.runs[0].method

    def repetitions(self, metric: str) -> dict[str, Run]:
        """Return {seed: its run} of the runs that have a metric; of several runs of one seed the latest.

        Where runs of one seed differ in view_seed, each is a repetition, and named by both.
        """
        runs = sorted((run for run in self.runs if metric in run.metrics), key=lambda run: run.started)
        latest = {(run.seed, run.view_seed): run for run in runs}
        seeds = Counter(seed for seed, _ in latest)
        return {seed if seeds[seed] == 1 else f"{seed}, views {views}": run for (seed, views), run in latest.items()}

    def by_seed(self, metric: str) -> dict[str, float]:
        """Return {seed: a metric's value}, of the repetitions that have it."""
        return {seed: run.metrics[metric] for seed, run in self.repetitions(metric).items()}

    def values(self, metric: str) -> list[float]:
        """Return a metric's value of every repetition that has it."""
        return list(self.by_seed(metric).values())

    def set_aside(self, metric: str) -> int:
        """Return how many runs that have a metric are not counted, since a later one repeats them."""
        return sum(metric in run.metrics for run in self.runs) - len(self.repetitions(metric))


def runs_of(client: mlflow.MlflowClient, experiment: str) -> list[Run]:
    """Return the training runs of an experiment, oldest first. Refused where there is none of that name."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments())) or "none"
        raise Refused(f"{client.tracking_uri} has no experiment {experiment!r}; it has: {names}")
    records: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([found.experiment_id], page_token=token, order_by=["attributes.start_time"])
        records += page
        token = page.token
        if not token:
            break
    runs = [Run.of(record) for record in records if "name" in record.data.params]
    parents = {run.parent for run in runs}
    return [run for run in runs if run.run_id not in parents]


def find_run(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """Return a run by its id; None for one that the store has not, or no longer: it may have been deleted there."""
    try:
        found = client.get_run(run_id)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return Run.of(found) if found.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Group finished runs by recipe, in order of first appearance."""
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        if run.status == "FINISHED":
            groups.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    return [Group(tuple(members)) for members in groups.values()]


def siblings(run: Run, runs: Iterable[Run]) -> Group:
    """Return the finished runs of one run's recipe, itself among them."""
    members = [other for other in runs if other.fields == run.fields and other.status == "FINISHED"]
    return Group(tuple(members) or (run,))

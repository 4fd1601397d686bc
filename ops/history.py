"""The runs that MLflow holds, as plain values: which belong together, and what they reached."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import mlflow
from mlflow.entities import Run as MlflowRun

from cluster.recipe.config import RunConfig
from cluster.tracking.description import WEIGHTS
from cluster.tracking.mlflow_errors import active_run, require_active
from cluster.tracking.mlflow_tracker import CONSTANTS
from kdcore.errors import Refused
from kdcore.named_models import LOCAL_DIR
from ops.defaults import with_defaults, with_micro_batch

# The fields of a recipe that may differ between repetitions of a run: those that may differ between two starts of it.
# For the places of images, weights and code, their content counts: `with_shared_roots`, `with_shared_weights`, and the
# tag of plug-ins.
INCIDENTAL = {"name", "seed", "view_seed", *RunConfig.INCIDENTAL, *RunConfig.INCIDENTAL_FIELDS} - {
    "data.root",
    "plugins",
}
INCIDENTAL_OF_TEACHERS = re.compile(r"teachers\.\d+\.cache_dir")
DECISION = "sweep.decision"  # a tag that a sweep gives its runs when they end
PARENT = "mlflow.parentRunId"
DEPLOYED = "deployed/"  # prefix of the metrics measured on weights that were chosen for deployment


def of_deployed(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a run's metrics, with validations of its deployed weights where those are not the last ones."""
    own = {name: value for name, value in metrics.items() if not name.startswith(DEPLOYED)}
    chosen = {name.removeprefix(DEPLOYED): value for name, value in metrics.items() if name.startswith(DEPLOYED)}
    return own | chosen


@dataclass(frozen=True)
class Run:
    """One training run.

    recipe: its resolved fields as they were logged, flat, as text; metrics: the last value of each, as in
    `of_deployed`, and the numbers that no step changes; images: the digest of its training images, empty where MLflow
    has none.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    started: float
    recipe: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    images: str = ""

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
            images=next((one.dataset.digest for one in (run.inputs.dataset_inputs if run.inputs else ())), ""),
        )

    @cached_property
    def fields(self) -> dict[str, str]:
        """The recipe's fields that decide the result, except the seed; a field that is None is left out.

        Fields added to recipes since the run have their defaults, so that it stays in one group with later runs.
        """
        code = {"plugins": self.tags["plugins"]} if "plugins" in self.tags else {}
        return {
            key: value
            for key, value in (with_micro_batch(with_defaults(self.recipe)) | code).items()
            if value != "None" and not is_incidental(key)
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
        """How the run ended; for a sweep's trial, what the sweep decided."""
        return self.tags.get(DECISION, self.status.lower())

    @property
    def was_stopped(self) -> bool:
        """Whether its sweep stopped it early, for its score."""
        return self.status == "KILLED" and self.tags.get(DECISION, "lost") not in ("failed", "lost")

    @property
    def parent(self) -> str | None:
        """The id of the sweep that the run belongs to, if any."""
        return self.tags.get(PARENT)


def constants(tags: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a run that no step changes, which are tags in MLflow."""
    found = {name: value for name, value in tags.items() if name.startswith(CONSTANTS) and value != "-"}
    return {name: float(value) for name, value in found.items()}


def is_incidental(field: str) -> bool:
    """Return whether a field may differ between runs that are repetitions of one another."""
    return bool(INCIDENTAL & {field, field.partition(".")[0]} or INCIDENTAL_OF_TEACHERS.fullmatch(field))


@dataclass(frozen=True)
class Group:
    """Finished runs of one recipe that differ in their seeds. stopped: its other runs, which a sweep stopped early."""

    runs: tuple[Run, ...]
    stopped: tuple[Run, ...] = ()

    @property
    def fields(self) -> dict[str, str]:
        """The recipe's fields that decide the result, except the seed."""
        return self.runs[0].fields

    @property
    def method(self) -> str:
        """The names of the method's terms, such as ce+kd."""
        return self.runs[0].method

    @property
    def stops(self) -> str:
        """The number of its stopped seeds, such as '1 of 3 seeds stopped'; empty where a run of each has finished.

        The finished ones were the best early on, so they say nothing about seed noise.
        """
        finished = {(run.seed, run.view_seed) for run in self.runs}
        stopped = {(run.seed, run.view_seed) for run in self.stopped} - finished
        return f"{len(stopped)} of {len(stopped) + len(finished)} seeds stopped" if stopped else ""

    def repetitions(self, metric: str) -> dict[str, Run]:
        """Return {seed: its run} of the runs that have a metric; of several runs of one seed, the latest.

        Where runs of one seed differ in view_seed, each is a repetition, named by both.
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
        """Return the number of runs that have a metric but do not count, since a later one repeats them."""
        return sum(metric in run.metrics for run in self.runs) - len(self.repetitions(metric))


def runs_of(client: mlflow.MlflowClient, experiment: str) -> list[Run]:
    """Return the training runs of an experiment, oldest first. Refused for a name that MLflow lacks."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        names = ", ".join(sorted(one.name for one in client.search_experiments())) or "none"
        raise Refused(f"{client.tracking_uri} has no experiment {experiment!r}; it has: {names}")
    require_active(found, client.tracking_uri)
    records: list[MlflowRun] = []
    token = None
    while True:
        page = client.search_runs([found.experiment_id], page_token=token, order_by=["attributes.start_time"])
        records += page
        token = page.token
        if not token:
            break
    runs = [Run.of(record) for record in records if "name" in record.data.params]
    runs = with_shared_weights(with_shared_roots(runs))
    parents = {run.parent for run in runs}
    return [run for run in runs if run.run_id not in parents]


def find_run(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """Return a run by its id; None if the store does not have it, or no longer: it may have been deleted there."""
    found = active_run(client, run_id)
    return None if found is None else Run.of(found)


def with_shared_roots(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with one data.root for the same images, that of the first run, and another for others there.

    MLflow has the digest of a run's training images, which data.held_out and data.images_per_class make different for
    each seed: two folders hold the same images as soon as any two runs on them have the same digest. runs: by time.
    """
    first: dict[str, str] = {}  # {digest: a folder with those images}
    earlier: dict[str, str] = {}  # {folder: another one with its images, used by an earlier run}

    def earliest(root: str) -> str:
        while root in earlier:
            root = earlier[root]
        return root

    roots = roots_by_images(runs)
    for run, root in zip(runs, roots, strict=True):
        here = earliest(root)
        if run.images and (there := earliest(first.setdefault(run.images, here))) != here:
            earlier[here] = there
    return [
        replace(run, recipe=run.recipe | {"data.root": earliest(root)}) for run, root in zip(runs, roots, strict=True)
    ]


def roots_by_images(runs: Sequence[Run]) -> list[str]:
    """Return each run's data.root, with a digest where images were changed in that folder. runs: by time.

    That they were is known from two runs that would read the same images, and did not. What was in the folder for
    other runs follows from their digests or, where these are new, from the time.
    """
    held: dict[tuple[str, str], str] = {}  # {(folder, digest): what stands for the folder with those images}
    latest: dict[str, str] = {}  # {folder: what stood for it last}
    read: dict[tuple[Any, ...], set[str]] = {}  # {what decides which images of a folder are read: what stood for it}
    found = []
    for run in runs:
        root = run.recipe.get("data.root", "")
        if run.images:
            fields = frozenset(item for item in run.fields.items() if item[0].startswith("data."))
            before = read.setdefault((root, fields, run.view_seed), set())
            last = latest.get(root, root)
            changed = f"{root} ({run.images[:8]})" if last in before else last
            latest[root] = held.setdefault((root, run.images), changed)
            before.add(latest[root])
        found.append(latest[root] if run.images else root)
    return found


def with_shared_weights(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with one place for the same weights, that of the first run, and another for others in that place.

    Runs that began before MLflow was told the fingerprints of their weights keep the places that they name.
    """
    shown: dict[tuple[str, str], str] = {}  # {(field, fingerprint): the place that stands for it}
    found = []
    for run in runs:
        places = {}
        for tag, fingerprint in sorted(run.tags.items()):
            field = tag.removeprefix(WEIGHTS)
            network, _, what = field.rpartition(".")
            if what == "checkpoint" and run.recipe.get(f"{network}.model", "").startswith(LOCAL_DIR):
                field = f"{network}.model"
            if tag.startswith(WEIGHTS) and (place := run.recipe.get(field)) is not None:
                is_taken = any(one == field and place == other for (one, _), other in shown.items())
                own = f"{place} ({fingerprint[:8]})" if is_taken else place
                places[field] = shown.setdefault((field, fingerprint), own)
        found.append(replace(run, recipe=run.recipe | places))
    return found


def grouped(runs: Iterable[Run]) -> list[Group]:
    """Group finished runs by recipe, in order of first appearance, with its runs that a sweep stopped."""
    finished: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    stopped: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in (run for run in runs if run.status == "FINISHED" or run.was_stopped):
        kind = stopped if run.was_stopped else finished
        kind.setdefault(tuple(sorted(run.fields.items())), []).append(run)
    return [Group(tuple(members), tuple(stopped.get(key, ()))) for key, members in finished.items()]


def siblings(run: Run, runs: Sequence[Run]) -> Group:
    """Return the finished runs of one run's recipe, including itself."""
    own = next((one for one in runs if one.run_id == run.run_id), run)  # with the data.root that it shares
    return next((group for group in grouped(runs) if group.fields == own.fields), Group((run,)))

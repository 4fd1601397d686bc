"""A sweep before it starts: its runs, the caches they share, how many fit at a time, and what it will cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.cache.outlook import Outlook
from cluster.images import open_data
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import check_may_be_trained
from cluster.recipe.sections import DataConfig
from cluster.sweep.caches import Caches, without_absent_weights
from cluster.sweep.config import RESERVED, SweepConfig
from cluster.sweep.journal import Trial
from cluster.sweep.space import (
    LayerScores,
    Point,
    Space,
    build_space,
    describe,
    num_points,
    parent_of,
    refuse_overwriting,
    run_config,
    shared_recipe,
    with_all_views,
)
from cluster.training.check import check_run
from cluster.training.validation import measured
from kdcore.errors import Refused
from pipelines.data.source import Source


class SweepPlan:
    """What a sweep will do. recipe: with its paths absolute; scores: of the layers, where the space has some.

    Refused where none of it could run, or where the runs could not be compared or need more caches than allowed.
    """

    def __init__(self, recipe: RunConfig, sweep: SweepConfig, scores: LayerScores | None) -> None:
        self.recipe, self.sweep, self.scores = recipe, sweep, scores
        self.base = shared_recipe(recipe, sweep)
        self.space: Space = build_space(sweep, scores)
        refuse_overwriting(self.base, self.space)
        self.checked: dict[tuple[object, ...], str] = {}  # {what is checked: what is wrong with it}
        self.problems: dict[str, str] = {}  # {point: what is wrong with it}
        fit = [(point, config) for point in self.examples if (config := self._fitting(point))]
        if not fit:
            raise Refused(f"no point of the sweep is a valid run: {next(iter(self.problems.values()))}")
        for point, config in fit:
            require_own_fields(self.base, point, config)
        require_same_images(fit)
        self.caches = Caches(sweep, [config for _, config in fit])
        require_metric(sweep.metric, [(point, self.caches.reading(config)) for point, config in fit])

    @cached_property
    def examples(self) -> list[Point]:
        """The points; of a search that makes them as it goes, some that cover every value."""
        return self.space.points() or self.space.probes()

    @property
    def num_trials(self) -> int:
        """How many runs there will be."""
        return num_points(self.space) * len(self.sweep.seeds)

    def config(self, trial: Trial) -> RunConfig:
        """Return the run of a trial, reading the cache it shares. Refused where its point makes no run."""
        config = self._run(trial.point, f"{self.sweep.name}-{trial.name}", trial.seed)
        if problem := self._problem(config):
            raise Refused(problem)
        return self.caches.reading(config)

    def score(self, trial: Trial) -> float | None:
        """Return the score that a trial is compared by; None where it has none yet, or failed."""
        return trial.score(self.sweep.metric, selects_best=self.base.train.select == "held_out")

    @property
    def parent(self) -> RunConfig:
        """The sweep itself as MLflow and its folder know it: the recipe under the sweep's name."""
        return parent_of(self.recipe, self.sweep)

    def _run(self, point: Point, name: str, seed: int) -> RunConfig:
        """Return the run of a point and a seed, with the teacher online. Refused for a point that makes no run."""
        config = run_config(self.base, point, name, seed)
        is_cached = self.sweep.teacher == "cache" and self.recipe.all_teachers
        return with_all_views(config, self.recipe.train.epochs) if is_cached else config

    def _fitting(self, point: Point) -> RunConfig | None:
        """Return the run of a point with the first seed; None, with the problem noted, where it makes none."""
        try:
            config = self._run(point, self.sweep.name, self.sweep.seeds[0])
            problem = self._problem(config)
        except Refused as error:
            problem = str(error)
        if problem:
            self.problems[describe(point)] = problem
        return None if problem else config

    def _problem(self, config: RunConfig) -> str:
        """Return what is wrong with a run; networks, taps and files are checked once for each kind of run."""
        check_may_be_trained(config)
        terms = tuple(term.term for term in config.method)
        kind = (terms, config.needs, config.student.model_dump_json(), config.data, config.views, config.train)
        if kind not in self.checked:
            try:
                check_run(without_absent_weights(config) if self.sweep.teacher == "cache" else config)
                self.checked[kind] = ""
            except Refused as error:
                self.checked[kind] = str(error)
        return self.checked[kind]


def require_metric(metric: str, runs: Sequence[tuple[Point, RunConfig]]) -> None:
    """Refuse a metric that the validations of a run do not measure on its held-out images."""
    images: dict[tuple[DataConfig, int], dict[str, Source]] = {}  # {what decides about them: the run's}
    found: list[list[str]] = []
    for _, config in runs:
        key = (config.data, config.plan_seed)
        if key not in images:
            images[key] = open_data(config, reuse_index=True)
        found.append([f"held_out/{name}" for name in measured(config, images[key], "held_out")])
    lacking = next((point for (point, _), names in zip(runs, found, strict=True) if metric not in names), None)
    if lacking is not None:
        common = [name for name in found[0] if all(name in names for names in found)]
        remedy = f"take one of {', '.join(common)}"
        if not common:
            remedy = (
                "nothing is in all runs: have each teach its classifier (ce, kd), take a sweep for each kind, or set "
                "teacher: online for a teacher without a head"
            )
        raise Refused(f"metric: {metric} is not measured in a run with {describe(lacking)}; {remedy}")


def require_own_fields(base: RunConfig, point: Point, config: RunConfig) -> None:
    """Refuse a point whose section, given as a whole, changes a field that belongs to the sweep."""
    for axis, (field, remedy) in itertools.product(point, RESERVED.items()):
        if field.startswith(f"{axis}."):
            ours, theirs = field_of(base, field), field_of(config, field)
            if None not in (ours, theirs) and ours != theirs:
                raise Refused(f"{axis} cannot be searched with {field} {theirs}, as the recipe has {ours}: {remedy}")


def field_of(config: RunConfig, field: str) -> Any:
    """Return a field of a run's section; None where the run has no such section."""
    section, _, name = field.partition(".")
    return getattr(getattr(config, section), name, None)


def require_same_images(runs: Sequence[tuple[Point, RunConfig]]) -> None:
    """Refuse axes that change which images are held out: scores on different images cannot be compared."""
    if len({(config.data, config.plan_seed) for _, config in runs}) == 1:
        return  # as in most sweeps: no index is opened
    found: dict[tuple[DataConfig, int], str] = {}  # {what determines the images: their fingerprint}
    firsts: dict[tuple[str, ...], tuple[Point, str]] = {}  # {axes: their first point, its images}
    changing: list[list[str]] = []
    for point, config in runs:
        key = (config.data, config.plan_seed)
        if key not in found:
            found[key] = open_data(config, reuse_index=True)["held_out"].fingerprint
        first, images = firsts.setdefault(tuple(point), (point, found[key]))
        if found[key] != images:
            changing.append([axis for axis in point if point[axis] != first[axis]])
    if changing:
        axes = min(changing, key=len)
        raise Refused(
            f"{' and '.join(axes)} cannot be searched: the runs would be compared on different held-out images; take a "
            "sweep for each value"
        )


@dataclass(frozen=True)
class Costs:
    """The seconds that a sweep still takes if all runs go to their ends, from the speed of each part by itself."""

    outlook: Outlook
    num_trials: int  # that have not ended
    concurrent: int
    num_caches: int  # to be built

    @property
    def build_seconds(self) -> float:
        """The seconds of building all caches."""
        return self.num_caches * self.outlook.build_seconds

    @property
    def cached_seconds(self) -> float:
        """The seconds of all runs from the caches, including building those."""
        return self._all(self.outlook.cached_seconds) + self.build_seconds

    @property
    def online_seconds(self) -> float:
        """The seconds of all runs with the teacher online."""
        return self._all(self.outlook.online_seconds)

    @property
    def break_even_trials(self) -> float | None:
        """The number of runs after which the cache has paid off; None for never."""
        epochs = self.outlook.break_even_epochs
        return None if epochs is None else epochs / self.outlook.epochs

    def _all(self, epoch_seconds: float) -> float:
        return epoch_seconds * self.outlook.epochs * math.ceil(self.num_trials / self.concurrent)

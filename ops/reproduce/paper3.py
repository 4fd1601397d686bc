"""`reproduce paper3`: the experiments around the feature-only paper on real images, from the data to the page.

Each step resumes where the last call stopped: the teacher's cache at a shard, runs at their checkpoints. Finished runs
are written to `benchmarks/results/` and onto the page at once, and are not run again, here or on another machine. Files
are the only state.

Not here: which experiments there are (`ops.reproduce.experiments`), where everything lies
(`ops.reproduce.paper3_state`), and the results (`ops.reproduce.paper3_results`, `ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.cache.job import build
from cluster.nodes.resources import device_here, use_worker_threads
from cluster.provenance import declare_commit
from cluster.recipe.config import RunConfig
from cluster.teachers.stored import TRAIN
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import close_run, open_run
from kdcore.errors import Refused
from kdcore.quality.score import INFORMATION_SCALE, SEPARATION
from kdcore.remarks import warn_once
from ops.console import say
from ops.facts import command, facts
from ops.layers import layers
from ops.reproduce.experiments import CHOSEN, EXPERIMENTS, Experiment
from ops.reproduce.identities import write_identities
from ops.reproduce.lane import Lane
from ops.reproduce.machines import machine_in, machine_of
from ops.reproduce.paper3_page import RESULTS, write_page
from ops.reproduce.paper3_recipes import configure
from ops.reproduce.paper3_results import SCORES, collect, layer_scores, published_runs
from ops.reproduce.paper3_state import State, only_one, prepare_cifar, prepare_images
from ops.reproduce.slices import Run, conclude, run_name, run_slice, unfinished
from pipelines.cache.manifest import MANIFEST, load_manifest
from pipelines.files import locked, make_folder

CIFAR = "short_schedule"  # the experiment on CIFAR-100
REPORT_SECONDS = 60.0  # between two pages while runs finish; the end of a slice always writes one


class SliceOver(Exception):
    """The minutes are over; raised while a cache is being built."""


def reproduce(
    experiments: Sequence[str],
    rows: Sequence[str] | None,
    seeds: Sequence[int] | None,
    minutes: float,
    side_by_side: int,
    state: str,
    data: str | None,
    weights: str | None,
    cifar: str | None,
    cifar_weights: str | None,
    commit: str | None,
    again: bool,
    overrides: Sequence[str],
) -> int:
    """Run as much of the experiments as the minutes allow, and write their results."""
    declare_commit(commit)
    place, ends = State(Path(state).absolute()), time.monotonic() + 60 * minutes
    make_folder(place.path, "--state")
    with only_one(place):
        prepare_cifar(place, cifar, cifar_weights, needed=CIFAR in experiments)
        prepare_images(place, data, weights, needed=not {CIFAR, "identities"}.issuperset(experiments))
        if "identities" in experiments:
            write_identities(place.published(overrides) / RESULTS)
        known = (name for name in experiments if name in EXPERIMENTS)
        slices = [Slice(name, place, overrides, rows, seeds, again) for name in known]
        left = [name for chosen in slices for name in chosen.advance(ends, side_by_side)]
        return conclude(left, (chosen.folder(*run) for chosen in slices for run in chosen.runs_to_do))


@dataclass(frozen=True)
class Slice:
    """The requested part of an experiment: some rows and seeds, or all of them.

    again: whether runs that another machine has published are also run here.
    """

    name: str
    state: State
    overrides: Sequence[str]
    rows: Sequence[str] | None
    seeds: Sequence[int] | None
    again: bool = False
    reported: list[float] = field(default_factory=list)  # when, by the monotonic clock

    @property
    def experiment(self) -> Experiment:
        """The experiment itself."""
        return EXPERIMENTS[self.name]

    @property
    def runs(self) -> list[Run]:
        """The runs, all rows of a seed before the next seed. Refused for a row that the experiment does not have."""
        known = self.experiment.rows
        if unknown := [row for row in self.rows or () if row not in known]:
            raise Refused(f"--rows {unknown[0]}: no row of {self.name}; take of {', '.join(known)}")
        seeds = range(self.experiment.num_seeds) if self.seeds is None else self.seeds
        return [(row, seed) for seed in seeds for row in self.rows or known]

    @property
    def runs_to_do(self) -> list[Run]:
        """The runs without those whose result is already published: by any machine or, with `again`, by this one."""
        published = published_runs(self.name, self.results, self.overrides)
        here = machine_in(facts()) if self.again else None
        done = {
            (row, one["seed"])
            for row, found in published.items()
            for one in found
            if one["finished"] and (here is None or machine_of(one) == here)
        }
        return [run for run in self.runs if run not in done]

    @property
    def results(self) -> Path:
        """The folder of the result files."""
        return self.state.published(self.overrides) / RESULTS

    def folder(self, row: str, seed: int) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.state.path / f"{self.name}-{run_name(row, seed)}")

    def configure(self, row: str, seed: int = 0) -> RunConfig:
        """Return the recipe of a row as one run of the experiment."""
        return configure(self.name, self.experiment, self.experiment.rows[row], row, seed, self.state, self.overrides)

    def advance(self, ends: float, side_by_side: int) -> list[str]:
        """Build caches and train runs until the time `ends`; return the names of the runs that are left."""
        runs = self.runs_to_do
        missing = unfinished(runs, self.configure, self.folder)
        if self.experiment.of_layers and not layer_scores(self.state.path, self.results):
            score_layers(self.state)
        try:
            for cache in self.experiment.builders:
                rows = [row for row, _ in missing if self.experiment.rows[row].cache == cache]
                if rows and time.monotonic() < ends:
                    self.build(cache, rows, ends)
            if missing and (seconds := ends - time.monotonic()) > 0:
                first = self.configure(*missing[0])
                use_worker_threads(first)
                run_slice(
                    runs,
                    self.configure,
                    self.folder,
                    device=device_here(first),
                    seconds=seconds,
                    side_by_side=side_by_side,
                    then=self.finished,
                )
        except SliceOver:
            say(f"{self.name}: the minutes are over while a cache is built")
        for row, seed in runs:
            if self.folder(row, seed).state() == "finished":
                track(self.configure(row, seed))
        self.report()
        return [f"{self.name}-{run_name(*run)}" for run in unfinished(runs, self.configure, self.folder)]

    def build(self, cache: str, rows: Sequence[str], ends: float) -> None:
        """Build a cache, or resume building it, with as many views as the rows read, until the time `ends`."""
        config = self.configure(self.experiment.builders[cache])
        num_views = max(self.configure(row).views.num_views or 0 for row in rows)
        config = config.model_copy(update={"views": config.views.model_copy(update={"num_views": num_views})})
        if stored_views(config) >= num_views:
            return
        said = time.monotonic()

        def watch(progress: dict[str, Any], messages: list[str]) -> None:
            nonlocal said
            if time.monotonic() > ends:
                raise SliceOver
            if time.monotonic() - said > 30 or progress["step"] == progress["total_steps"]:
                said = time.monotonic()
                say(f"cache {cache}: {progress['step']:,} of {progress['total_steps']:,} rows")

        build(config, watch)

    def finished(self, lane: Lane) -> None:
        """Send a finished run to MLflow, and add it to the page: now, or with the runs of the next minute."""
        track(lane.config)
        if not self.reported or time.monotonic() - self.reported[-1] > REPORT_SECONDS:
            self.report()

    def report(self) -> None:
        """Write the result file and the page; a lock keeps out other calls, whose runs lie in other folders."""
        with locked(make_folder(self.results, "the results") / ".lock"):
            collect(self.name, self.state.path, self.results, self.overrides)
            write_page(self.results.parent)
        self.reported.append(time.monotonic())


def track(config: RunConfig) -> None:
    """Send a finished run to MLflow, unless it is there; a machine without MLflow leaves that to a later call."""
    if importlib.util.find_spec("mlflow") is None:
        warn_once("MLflow is not installed here; the same command brings the runs to it where it is")
        return
    folder = RunFolder.of(config)
    if folder.outbox.exists() or not folder.run_id.exists():
        open_run(config, command())
        close_run(config, "FINISHED")


def score_layers(state: State) -> None:
    """Measure the quality of the teacher's layers, in the setting that the recipes' layers were chosen in."""
    layers(
        "paper3/feature_only",
        [
            "teacher.source=online",
            f"teacher.checkpoint={state.weights}",
            f"teacher.class_indices={state.class_indices}",
            f"data.root={state.images}",
            f"output_dir={state.path}",
        ],
        taps=None,
        student_taps=["layer1", "layer2", "layer3", "layer4"],
        num_pairs=len(CHOSEN),
        num_images=1000,
        scale=INFORMATION_SCALE,
        separation=SEPARATION,
        max_elements=16384,
        output_dir=str((state.path / SCORES).parent),
    )


def stored_views(config: RunConfig) -> int:
    """Return the number of views in a recipe's cache; 0 for an unfinished one."""
    assert config.cache is not None, "the recipe of a row that builds a cache has one"
    folder = Path(config.cache.dir)
    return load_manifest(folder).plan.parts[TRAIN].num_views if (folder / MANIFEST).exists() else 0

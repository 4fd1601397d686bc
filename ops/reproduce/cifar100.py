"""The papers' CIFAR-100 rows for resnet32x4 -> resnet8x4, on a GPU that is free for some minutes at a time.

240 epochs in batches of 64, from the recipes that `python -m ops recipes cifar100/resnet32x4-resnet8x4` lists.

    python -m ops data cifar100 --from DIR --to data/cifar100
    python -m ops reproduce cifar100 --rows teacher --minutes 9         # until it says that this is done
    python -m ops reproduce cifar100 --seeds 0 1 2 --minutes 9          # likewise, the students
    python -m ops reproduce cifar100 --collect                          # results/cifar100.json

What goes beyond the papers is chosen on a tenth of the training images, which those runs do not train on (the teacher
did); what is chosen is then run like the rows above:

    python -m ops reproduce cifar100 --held-out 0.1 --minutes 9         # likewise; then the same with --collect
    python -m ops reproduce cifar100 --rows simkd-wttm --seeds 0 1 2    # the chosen one, on all training images

Runs of one seed share their batches and their teacher's answers while they are side by side (`ops.reproduce.lanes`).
Unfinished runs are saved when the minutes are over; the same command continues them, also on another machine that has
the folder --state. Needs torch, timm, numpy, pyarrow, Pillow, safetensors, pydantic, PyYAML, rich, psutil and
matplotlib, but no Ray, DALI or MLflow. To carry the state in files of a limited size, and to join them:

    tar c --exclude index outputs/cifar100-benchmark | split -b 15M - state.         cat state.* | tar x
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml

from cluster.provenance import declare_commit
from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from ops import catalog
from ops.cifar100.tables import NETWORKS
from ops.console import console, say, table
from ops.facts import write
from ops.reproduce.slices import (
    Run,
    conclude,
    num_finished,
    run_name,
    run_slice,
    runs_of,
    summary,
    text,
    unfinished,
)

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
PAIR = f"cifar100/{TEACHER}-{STUDENT}"
WITH_LABELS = "method.1.term=feature_mse"  # feature_only's loss, and the labels reach the backbone
LAYERS = "layers"  # the folder of the scores by which the quality rows choose
# {row: recipe, overrides}
ROWS: dict[str, tuple[str, list[str]]] = {
    "teacher": (f"cifar100/{TEACHER}/alone", []),
    "alone": (f"cifar100/{STUDENT}/alone", []),
    "kd": (f"{PAIR}/kd", []),
    "dkd": (f"{PAIR}/dkd", []),
    "ttm": (f"{PAIR}/ttm", []),
    "wttm": (f"{PAIR}/wttm", []),
    "simkd": (f"{PAIR}/simkd", []),
    "feature_only": (f"{PAIR}/feature_only", []),
    "feature_only-ce": (f"{PAIR}/feature_only", [WITH_LABELS]),
    "feature_only-q": (f"{PAIR}/feature_only", []),
    "feature_only-q-ce": (f"{PAIR}/feature_only", [WITH_LABELS]),
}
LONGER = ["train.epochs=480", "schedule.milestones=[300, 360, 420]"]
MIXED = ["views.mixup_alpha=0.2"]  # the teacher sees the mixed images themselves: its targets are exact
# WTTM, through the reused classifier.
BOTH = "method=[{{term: simkd, weight: 1}}, {{term: wttm, weight: {}, gamma: 0.1}}]"
# Likewise, of rows that are in no paper.
BEYOND: dict[str, tuple[str, list[str]]] = {
    "simkd-wttm": (f"{PAIR}/simkd", [BOTH.format(1)]),
    "simkd-wttm-weak": (f"{PAIR}/simkd", [BOTH.format(0.1)]),
    "simkd-longer": (f"{PAIR}/simkd", LONGER),
    "simkd-longer-mixed": (f"{PAIR}/simkd", [*LONGER, *MIXED]),
    "simkd-wttm-longer-mixed": (f"{PAIR}/simkd", [BOTH.format(1), *LONGER, *MIXED]),
    "wttm-longer-mixed": (f"{PAIR}/wttm", [*LONGER, *MIXED]),
    "feature_only-q-longer": (f"{PAIR}/feature_only", LONGER),
}
WITHOUT_TEACHER = ("teacher", "alone")
BY_QUALITY = ("feature_only-q", "feature_only-q-ce", "feature_only-q-longer")
# {difference from published protocols: rows, () for all}, beyond those that the recipes list.
DIFFERENCES: dict[str, tuple[str, ...]] = {
    "one teacher of one seed, trained here; every paper has its own, or the released one of 79.42": (),
    "on a GPU, convolutions in TF32, PyTorch's default for float32 (published runs: full float32)": (),
    "the same loss, and the labels reach the backbone": ("feature_only-ce", "feature_only-q-ce"),
    "the teacher's layers of highest quality Q over 5,000 images, maps pooled to 16,384 values": tuple(
        row for row in BY_QUALITY if row in ROWS
    ),
}


@dataclass(frozen=True)
class Place:
    """Where the runs lie and what they read. held_out: the fraction of the training images to evaluate on."""

    state: Path
    data: str
    held_out: float = 0.0
    overrides: Sequence[str] = ()

    @property
    def runs(self) -> Path:
        """The folder of runs; those that hold images out have one of their own."""
        return self.state / "held_out" if self.held_out else self.state

    @property
    def teacher(self) -> Path:
        """The file of weights that the teacher's run writes."""
        return RunFolder(self.state / run_name("teacher", 0)).weights

    def folder(self, row: str, seed: int) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.runs / run_name(row, seed))

    def configure(self, row: str, seed: int) -> RunConfig:
        """Return the recipe of a row as one run of this benchmark.

        Refused where the teacher does not exist yet.
        """
        recipe, changes = (ROWS | BEYOND)[row]
        common = [
            f"name={run_name(row, seed)}",
            f"seed={seed}",
            f"output_dir={self.runs}",
            f"data.held_out={self.held_out}",
            f"data.root={self.data}",
            "data.loader=resident",
            "scaling.num_workers=0",
            *self.overrides,
        ]
        if row not in WITHOUT_TEACHER:
            if not self.teacher.exists():
                raise Refused(f"{row} has no teacher in {self.state} yet; run --rows teacher to its end first")
            common.append(f"teacher.checkpoint={self.teacher}")
        if row in BY_QUALITY:
            changes = [f"method.1.pairs={json.dumps(pairs_by_quality(common, self.state / LAYERS))}", *changes]
        return catalog.load(recipe, [*changes, *common])


def pairs_by_quality(common: list[str], folder: Path) -> list[dict[str, str]]:
    """Return the student taps of the standard row, each with a layer of this teacher that `layers` recommends.

    The teacher is scored once. Maps are pooled to 16,384 values.
    """
    if not (folder / "method.yaml").exists():
        from ops.layers import layers

        layers(
            f"{PAIR}/feature_only",
            common,
            taps=None,
            student_taps=NETWORKS[STUDENT].stages,
            num_pairs=None,
            num_images=5000,
            scale="log5",
            separation="pairs",
            max_elements=16384,
            output_dir=str(folder),
        )
    return yaml.safe_load((folder / "method.yaml").read_text())["method"][0]["pairs"]


def reproduce(
    rows: Sequence[str] | None,
    held_out: float,
    seeds: Sequence[int],
    minutes: float,
    side_by_side: int,
    state: str,
    data: str,
    device: str | None,
    commit: str | None,
    collect: bool,
    overrides: Sequence[str],
) -> int:
    """Run as much of the rows as the minutes allow; or write the results so far to a file."""
    declare_commit(commit)
    place = Place(Path(state), data, held_out, overrides)
    if collect:
        write_results(place, [*ROWS, *BEYOND], "cifar100_held_out" if held_out else "cifar100")
        return 0
    runs = chosen_runs(rows or default_rows(held_out), seeds, place)
    run_slice(
        runs,
        place.configure,
        place.folder,
        device=torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")),
        seconds=60 * minutes,
        side_by_side=side_by_side,
    )
    left = [run_name(*run) for run in unfinished(runs, place.configure, place.folder)]
    return conclude(left, (place.folder(*run) for run in runs))


def default_rows(held_out: float) -> list[str]:
    """Return the rows to run where none are named."""
    return ["simkd", "wttm", *BEYOND] if held_out else [row for row in ROWS if row != "teacher"]


def chosen_runs(rows: Sequence[str], seeds: Sequence[int], place: Place) -> list[Run]:
    """Return the runs of the rows, all rows of a seed before the next seed; the teacher's first and alone."""
    if "teacher" in rows and not place.teacher.exists():
        if later := [row for row in rows if row not in WITHOUT_TEACHER]:
            say(f"{', '.join(later)}: by the same command again, when the teacher is trained")
        rows = [row for row in rows if row in WITHOUT_TEACHER]
    return list(dict.fromkeys((row, 0 if row == "teacher" else seed) for seed in seeds for row in rows))


def write_results(place: Place, rows: list[str], name: str) -> None:
    """Write results/<name>.json: every run of these recipes, and the spread of the finished ones.

    The results of a trial with overrides are written to the state instead.
    """
    found = {row: runs_of(place.runs, row, partial(place.configure, row)) for row in rows}
    results = {"rows": {row: summary(runs) for row, runs in found.items() if runs}}
    path = write(name, results, place.state if place.overrides else None)
    shown = [
        [row, num_finished(runs), *(text(one) for one in summary(runs)["top1"].values())] for row, runs in found.items()
    ]
    console.print(table(f"top-1 of finished runs, {name}", ["row", "n", "last epoch", "best epoch"], shown))
    say(f"written: {path}")

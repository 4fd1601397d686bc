"""The papers' CIFAR-100 rows for resnet32x4 -> resnet8x4, on a GPU that is free for some minutes at a time.

240 epochs in batches of 64, from the recipes that `python -m ops recipes cifar100/resnet32x4-resnet8x4` lists.

    python -m ops data cifar100 --from DIR --to data/cifar100
    python -m ops.reproduce.cifar100 --rows teacher --minutes 9         # until it says that this is done
    python -m ops.reproduce.cifar100 --seeds 0 1 2 --minutes 9          # likewise, the students
    python -m ops.reproduce.cifar100 --collect                          # results/cifar100.json

What goes beyond the papers is chosen on a tenth of the training images, which those runs do not train on (the teacher
did); what is chosen is then run as the rows above are:

    python -m ops.reproduce.cifar100 --held-out 0.1 --minutes 9         # likewise; then the same with --collect
    python -m ops.reproduce.cifar100 --rows simkd-wttm --seeds 0 1 2    # the chosen one, on all training images

Runs of one seed share their batches and their teacher's answers while they are side by side (`ops.reproduce.lanes`).
Runs that are not finished are saved when the minutes are over; the same command goes on with them, also on another
machine that gets the folder --state. Needs torch, timm, numpy, pyarrow, Pillow, safetensors, pydantic, PyYAML, rich,
psutil and matplotlib, but no Ray, DALI or MLflow. To carry the state in files of a limited size, and to join them:

    tar c --exclude index outputs/cifar100-benchmark | split -b 15M - state.         cat state.* | tar x
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.config import RunConfig
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from ops import catalog
from ops.benchmarks.facts import facts, spread, write
from ops.cifar_tables import NETWORKS
from ops.console import complain, console, say, table
from ops.reproduce.lanes import FAILED, Lane, take_turns

TEACHER, STUDENT = "resnet32x4", "resnet8x4"
PAIR = f"cifar100/{TEACHER}-{STUDENT}"
WITH_LABELS = "method.1.term=feature_mse"  # feature_only's loss, and the labels reach the backbone
LAYERS = "layers"  # the folder of the scores that the quality rows choose by
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
# Likewise, in no paper.
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
# {difference from published protocols: rows, () for all}, beyond what the recipes say of themselves.
DIFFERENCES: dict[str, tuple[str, ...]] = {
    "one teacher of one seed, trained here; every paper has its own, or the released one of 79.42": (),
    "on a GPU, convolutions in TF32, PyTorch's default for float32 (published runs: full float32)": (),
    "the same loss, and the labels reach the backbone": ("feature_only-ce", "feature_only-q-ce"),
    "the teacher's layers of highest quality Q over 5,000 images, maps pooled to 16,384 values": tuple(
        row for row in BY_QUALITY if row in ROWS
    ),
}


def configure(row: str, seed: int, args: Namespace) -> RunConfig:
    """Return the recipe of a row as one run of this benchmark.

    Refused where the teacher is not there yet.
    """
    recipe, changes = (ROWS | BEYOND)[row]
    common = [
        f"name={run_name(row, seed)}",
        f"seed={seed}",
        f"output_dir={runs_folder(args)}",
        f"data.held_out={args.held_out}",
        f"data.root={args.data}",
        "data.loader=resident",
        "scaling.num_workers=0",
        *args.set,
    ]
    if row not in WITHOUT_TEACHER:
        if not weights_of_teacher(args.state).exists():
            raise Refused(f"{row} has no teacher in {args.state} yet; run --rows teacher to its end first")
        common.append(f"teacher.checkpoint={weights_of_teacher(args.state)}")
    if row in BY_QUALITY:
        changes = [f"method.1.pairs={json.dumps(pairs_by_quality(common, Path(args.state) / LAYERS))}", *changes]
    return catalog.load(recipe, [*changes, *common])


def runs_folder(args: Namespace) -> Path:
    """Return where the runs lie; those that hold images out are others."""
    return Path(args.state) / "held_out" if args.held_out else Path(args.state)


def weights_of_teacher(state: str) -> Path:
    """Return the file of weights that the teacher's run leaves behind."""
    return RunFolder(Path(state) / run_name("teacher", 0)).weights


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


def main() -> None:
    """Run or collect what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=ROWS | BEYOND, help="default: the papers' but the teacher; with --held-out, beyond"
    )
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.0,
        help="this fraction of the training images judges instead of the test set",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the students; the teacher's is 0")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop and save after so long (%(default)s)")
    parser.add_argument(
        "--side-by-side", type=int, default=10, help="runs that take turns (%(default)s, the papers' rows of one seed)"
    )
    parser.add_argument("--state", default="outputs/cifar100-benchmark", help="folder of runs (%(default)s)")
    parser.add_argument("--data", default="data/cifar100", help="image folder (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="of this code, for a machine that has no git")
    parser.add_argument("--collect", action="store_true", help="write what there is into results/cifar100.json")
    parser.add_argument("--set", nargs="+", default=[], metavar="key=value", help="for tests: recipe fields to change")
    args = parser.parse_args()
    if args.collect:
        collect(runs_folder(args), [*ROWS, *BEYOND], "cifar100_held_out" if args.held_out else "cifar100")
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for the same bits twice
    rows = args.rows or (["simkd", "wttm", *BEYOND] if args.held_out else [row for row in ROWS if row != "teacher"])
    if "teacher" in rows and not weights_of_teacher(args.state).exists():
        if later := [row for row in rows if row not in WITHOUT_TEACHER]:
            say(f"{', '.join(later)}: by the same command again, when the teacher is trained")
        rows = [row for row in rows if row in WITHOUT_TEACHER]
    places = list(dict.fromkeys((row, 0 if row == "teacher" else seed) for seed in args.seeds for row in rows))
    try:
        run_slice(places, lambda row, seed: configure(row, seed, args), args)
    except Refused as error:
        complain(str(error))
        sys.exit(2)


def run_slice(places: list[tuple[str, int]], configure: Callable[[str, int], RunConfig], args: Namespace) -> None:
    """Run as much of the runs (row, seed) as the minutes allow.

    args: state, held_out, minutes, side_by_side, device, commit.
    """
    about = {"facts": facts() | ({"commit": args.commit} if args.commit else {})}

    def unfinished() -> list[tuple[str, int]]:
        folders = {place: RunFolder(runs_folder(args) / run_name(*place)) for place in places}
        return [place for place, folder in folders.items() if not (folder.state() == "finished" or has_failed(folder))]

    def finished(lane: Lane) -> None:
        lane.finish(about)
        say(f"{lane.config.name}: finished, top-1 {lane.curve[-1]['top1']:.2%}")

    lanes = (Lane(configure(*place), torch.device(args.device)) for place in unfinished())
    take_turns(lanes, args.side_by_side, args.minutes * 60, finished)
    for place in places:
        folder = RunFolder(runs_folder(args) / run_name(*place))
        if has_failed(folder):
            say(f"failed, to be tried again by deleting {folder.path / FAILED}: {run_name(*place)}")
    left = [run_name(*place) for place in unfinished()]
    say(f"to be continued by the same command: {', '.join(left)}" if left else "this is done")


def has_failed(folder: RunFolder) -> bool:
    """Return whether a run came to numbers that are not finite."""
    return (folder.path / FAILED).exists()


def run_name(row: str, seed: int) -> str:
    """Return the name of a row's run."""
    return f"{row}-seed{seed}"


def collect(state: Path, rows: list[str], name: str) -> None:
    """Write results/<name>.json: every run in the folder, and the spread of the finished ones."""
    found = {row: runs_of(state, row) for row in rows}
    path = write(name, {"rows": {row: summary(runs) for row, runs in found.items() if runs}})
    shown = [
        [row, str(len(runs)), *(text(one) for one in summary(runs)["top1"].values())] for row, runs in found.items()
    ]
    console.print(table(f"top-1 of finished runs, {name}", ["row", "runs", "last epoch", "best epoch"], shown))
    say(f"written: {path}")


def runs_of(state: Path, row: str) -> list[dict[str, Any]]:
    """Return a row's runs by seed, finished or not.

    Each with its last and its best epoch instead of the whole curve.
    """
    runs = []
    for folder in sorted(state.glob(f"{row}-seed*")):
        result, saved = RunFolder(folder).result, sorted(folder.glob("step-*/progress.json"))
        if not result.exists() and not saved:
            continue
        run = json.loads((result if result.exists() else saved[-1]).read_text())
        curve = run.pop("curve")
        best = max(curve, key=lambda epoch: epoch["top1"], default=None)
        run |= {"name": folder.name, "finished": result.exists(), "last": curve[-1] if curve else None, "best": best}
        runs.append(run)
    return runs


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return n, mean and spread of the top-1 on the test set over the finished runs.

    Of the last epoch, whose weights are deployed, and of the best epoch, which is what published numbers are.
    """
    finished = [run for run in runs if run["finished"]]
    top1 = {which: [run[which]["top1"] for run in finished] for which in ("last", "best")}
    return {"top1": {which: spread(values) if values else None for which, values in top1.items()}, "runs": runs}


def text(values: dict[str, Any] | None) -> str:
    if values is None:
        return "-"
    return f"{values['mean']:.2%}" + (f" ± {values['stdev']:.2%}" if values["stdev"] is not None else "")


if __name__ == "__main__":
    main()

"""Runs of (row, seed) in slices of some minutes: which are left, as much of them as fits, and what has come of them.

Not here: how runs share a machine (`ops.reproduce.lanes`), and which rows there are (`ops.reproduce.cifar100`,
`ops.reproduce.paper3`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.config import RunConfig
from cluster.device_memory import refuse_full_gpu
from cluster.tracking.folder import RunFolder
from ops.console import say
from ops.facts import facts, spread
from ops.reproduce.lane import FAILED, Lane
from ops.reproduce.lanes import take_turns

Run = tuple[str, int]  # row, seed


def run_slice(
    runs: Sequence[Run],
    configure: Callable[[str, int], RunConfig],
    folder_of: Callable[[str, int], RunFolder],
    *,
    device: torch.device,
    seconds: float,
    side_by_side: int,
    commit: str | None = None,
    then: Callable[[Lane], None] | None = None,
) -> bool:
    """Run as much of the runs as the seconds allow; return whether all have ended.

    configure: called for runs that have not ended, when their turn comes; commit: of this code, for a machine that has
    no git; then: called with every run that is finished, after its result is written.
    """
    about = {"facts": facts() | ({"commit": commit} if commit else {})}

    def finished(lane: Lane) -> None:
        lane.finish(about)
        say(f"{lane.config.name}: finished, top-1 {lane.curve[-1]['top1']:.2%}")
        if then is not None:
            then(lane)

    lanes = (Lane(configure(*run), device) for run in unfinished(runs, folder_of))
    fewer = f"give --side-by-side {side_by_side // 2} or fewer" if side_by_side > 1 else "take a GPU with more of it"
    with refuse_full_gpu(f"{fewer}; what is saved goes on from there"):
        take_turns(lanes, side_by_side, seconds, finished)
    for run in runs:
        folder = folder_of(*run)
        if has_failed(folder):
            say(f"failed, to be tried again by deleting {folder.path / FAILED}: {folder.path.name}")
    return not unfinished(runs, folder_of)


def unfinished(runs: Sequence[Run], folder_of: Callable[[str, int], RunFolder]) -> list[Run]:
    """Return the runs that have neither finished nor failed."""
    folders = {run: folder_of(*run) for run in runs}
    return [run for run, folder in folders.items() if not (folder.state() == "finished" or has_failed(folder))]


def has_failed(folder: RunFolder) -> bool:
    """Return whether a run came to numbers that are not finite."""
    return (folder.path / FAILED).exists()


def run_name(row: str, seed: int) -> str:
    """Return the name of a row's run."""
    return f"{row}-seed{seed}"


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
    """Return mean and standard deviation in percent; '-' where nothing has been run."""
    if values is None:
        return "-"
    return f"{values['mean']:.2%}" + (f" ± {values['stdev']:.2%}" if values["stdev"] is not None else "")

"""Runs of (row, seed) in slices of some minutes: which are left, as much of them as fits, and their results.

Not here: how runs share a machine (`ops.reproduce.lanes`), and which rows there are (`ops.reproduce.cifar100`,
`ops.reproduce.paper3`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from cluster.device_memory import refuse_full_gpu
from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from kdcore.remarks import warn_once
from ops.console import say
from ops.facts import facts, spread
from ops.reproduce.lane import FAILED, Lane
from ops.reproduce.lanes import take_turns
from pipelines.files import read_object

Run = tuple[str, int]  # row, seed


def run_slice(
    runs: Sequence[Run],
    configure: Callable[[str, int], RunConfig],
    folder_of: Callable[[str, int], RunFolder],
    *,
    device: torch.device,
    seconds: float,
    side_by_side: int,
    then: Callable[[Lane], None] | None = None,
) -> None:
    """Run as much of the runs as the seconds allow.

    configure: called for runs that have begun, and for others when their turn comes; then: called with every finished
    run, after its result is written.
    """
    about = {"facts": facts()}

    def finished(lane: Lane) -> None:
        lane.finish(about)
        say(f"{lane.config.name}: finished, top-1 {lane.curve[-1]['top1']:.2%}")
        if then is not None:
            then(lane)

    lanes = (Lane(configure(*run), device) for run in unfinished(runs, configure, folder_of))
    fewer = f"give --side-by-side {side_by_side // 2} or fewer" if side_by_side > 1 else "take a GPU with more of it"
    with refuse_full_gpu(f"{fewer}; what is saved goes on from there"):
        take_turns(lanes, side_by_side, seconds, finished)


def unfinished(
    runs: Sequence[Run], configure: Callable[[str, int], RunConfig], folder_of: Callable[[str, int], RunFolder]
) -> list[Run]:
    """Return the runs that have neither finished nor diverged. Refused where an existing run has another recipe."""
    folders = {run: folder_of(*run) for run in runs}
    for run, folder in folders.items():
        if folder.state() != "new":
            refuse_another(folder, configure(*run))
    return [run for run, folder in folders.items() if not (folder.state() == "finished" or has_failed(folder))]


def refuse_another(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a recipe other than that of the run in the folder, such as that of a trial or of older code."""
    folder.refuse_another(config, "give another --state, or delete that folder")


def has_failed(folder: RunFolder) -> bool:
    """Return whether a run diverged: came to numbers that are not finite."""
    return (folder.path / FAILED).exists() and folder.state() != "finished"


def conclude(left: Sequence[str], folders: Iterable[RunFolder]) -> int:
    """Print which runs are left, and which of the folders' runs have diverged; return the exit status."""
    failed = [folder for folder in folders if has_failed(folder)]
    for folder in failed:
        error = failure(folder).get("error")
        say(f"{folder.path.name} diverged: {error}; to try it again, delete {folder.path / FAILED}")
    done = f"this is done, but for {len(failed)} diverged run{'s' * (len(failed) > 1)}" if failed else "this is done"
    say(f"to be continued by the same command: {', '.join(left)}" if left else done)
    return 1 if failed else 0


def failure(folder: RunFolder) -> dict[str, Any]:
    """Return the step at which a run diverged, and the error."""
    return read_object(folder.path / FAILED, "delete it to try the run again")


def run_name(row: str, seed: int) -> str:
    """Return the name of a row's run."""
    return f"{row}-seed{seed}"


def runs_of(state: Path, row: str, configure: Callable[[int], RunConfig]) -> list[dict[str, Any]]:
    """Return a row's runs by seed, finished or not; those of another recipe are left out, with a warning.

    Each has its last and its best epoch instead of the whole curve; a diverged one has the step at which it diverged.
    configure: returns the recipe of a seed.
    """
    runs = []
    for folder in map(RunFolder, sorted(state.glob(f"{row}-seed*"))):
        saved = sorted(folder.path.glob("step-*/progress.json"))
        found = re.fullmatch(r"-seed(\d+)", folder.path.name.removeprefix(row))
        if found is None or not (saved or folder.result.exists() or has_failed(folder)):
            continue
        config = configure(int(found[1]))
        try:
            refuse_another(folder, config)
        except Refused as error:
            warn_once(f"left out: {error}")
            continue
        path = folder.result if folder.result.exists() else saved[-1] if saved else None
        run = json.loads(path.read_text()) if path else {"curve": []}
        curve = run.pop("curve")
        best = max(curve, key=lambda epoch: epoch["top1"], default=None)
        ends = {"last": curve[-1] if curve else None, "best": best}
        run |= {"name": folder.path.name, "finished": folder.result.exists(), **ends}
        runs.append(run | ({"failed_step": failure(folder).get("step")} if has_failed(folder) else {}))
    return runs


def has_diverged(run: dict[str, Any]) -> bool:
    """Return whether a run, as returned by `runs_of`, has diverged."""
    return "failed_step" in run


def num_finished(runs: Sequence[dict[str, Any]]) -> str:
    """Return the number of finished runs, and of diverged ones if any, such as '2 (1 of 3 diverged)'."""
    finished, diverged = sum(run["finished"] for run in runs), sum(map(has_diverged, runs))
    return f"{finished} ({diverged} of {finished + diverged} diverged)" if diverged else str(finished)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return n, mean and spread of the top-1 on the test set over the finished runs.

    Of the last epoch, whose weights are deployed, and of the best epoch, which published numbers are from.
    """
    finished = [run for run in runs if run["finished"]]
    top1 = {which: [run[which]["top1"] for run in finished] for which in ("last", "best")}
    return {"top1": {which: spread(values) if values else None for which, values in top1.items()}, "runs": runs}


def text(values: dict[str, Any] | None) -> str:
    """Return mean and standard deviation in percent; '-' where nothing has been run."""
    if values is None:
        return "-"
    return f"{values['mean']:.2%}" + (f" ± {values['stdev']:.2%}" if values["stdev"] is not None else "")

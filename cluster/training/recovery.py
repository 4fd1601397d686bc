"""What happens when something dies: which failures are retried, how they are named, and what is found afterwards.

A run goes on from the latest checkpoint in Ray Train's own list, `checkpoint_manager_snapshot.json` in the run's
folder. A checkpoint enters that list once it is complete, so a half-written one is never picked. The list itself,
though, is overwritten in place where it lies in a folder: there a copy is kept that is always whole. (An object store
replaces a file as a whole.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
from pyarrow.fs import FileSystem, FileType, LocalFileSystem
from ray.train import UserCallback
from ray.train.v2.api.exceptions import PreemptionError

from cluster.nodes.errors import CUT_OFF, FINAL, TIMED_OUT, describe, failure_reason, is_own_fault, rank_to_name
from cluster.training.checkpoint_files import is_whole
from cluster.training.opening import NotOpened
from kdcore.errors import ClusterFailed, RunFailed
from kdcore.remarks import warn_once
from pipelines.files import write_whole

CHECKPOINTS = "checkpoint_manager_snapshot.json"
CHECKPOINTS_COPY = "checkpoints.json"

# What Ray says of a worker whose controller is being killed, as a sweep does with the run of a trial that it stops.
ORPHANED = "its owner has died"


class Recovery(UserCallback):
    """Lives in Ray Train's controller: keeps the copy of the list, and ends a run that it is no use to retry.

    folder: of the run's checkpoints; None where they lie in an object store.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """Copy the list when it has been written, before the next report changes it."""
        if self.folder:
            write_whole(self.folder / CHECKPOINTS_COPY, (self.folder / CHECKPOINTS).read_bytes())

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """End the run at once where retrying would not help."""
        refuse_to_repeat(worker_exceptions)


def refuse_to_repeat(worker_exceptions: Mapping[int, Exception]) -> None:
    """Raise RunFailed for what would happen again, and for what must not start again."""
    if any(isinstance(error, NotOpened) for error in worker_exceptions.values()):
        raise NotOpened(describe(worker_exceptions))
    if any(isinstance(error, FINAL) for error in worker_exceptions.values()):
        raise RunFailed(describe(worker_exceptions))
    if any(ORPHANED in str(error) for error in worker_exceptions.values()):
        # It outlives its workers by a moment: long enough to start others, whose place would never be freed.
        raise RunFailed("the run was stopped from outside: its controller was killed")


def restore_checkpoint_list(folder: Path) -> None:
    """Restore the list of checkpoints from its copy where a kill has cut it off, and leave out those that are broken.

    The copy is at most one report behind, and what it names is still there: a checkpoint is deleted only after the list
    without it has been written.
    """
    listed, copy = folder / CHECKPOINTS, folder / CHECKPOINTS_COPY
    if not listed.exists():
        return
    if not is_json(listed):
        if copy.exists():
            write_whole(listed, copy.read_bytes())
        else:
            listed.unlink()  # cut off while the first checkpoint was reported: the run begins again
            return
    leave_out_broken(LocalFileSystem(), str(folder))


def leave_out_broken(filesystem: FileSystem, folder: str) -> None:
    """Take out of the list what a full disk, a lost machine or a person has cut off or removed, and warn in one line.

    folder: of the run's checkpoints, on a disk or in an object store.
    """
    place = f"{folder}/{CHECKPOINTS}"
    if filesystem.get_file_info(place).type != FileType.File:
        return
    with filesystem.open_input_file(place) as file:
        found = json.loads(file.read())
    results, indices = found.get("checkpoint_results", []), found.get("checkpoint_report_indices", [])
    kept = [i for i, result in enumerate(results) if is_whole(filesystem, f"{folder}/{result['checkpoint_dir_name']}")]
    if len(kept) == len(results):
        return
    broken = [result["checkpoint_dir_name"] for i, result in enumerate(results) if i not in kept]
    newest = max(kept, key=lambda i: indices[i], default=None)
    start = "the start" if newest is None else results[newest]["checkpoint_dir_name"]
    warn_once(f"{folder}: {', '.join(broken)} cut off or gone; the run goes on from {start}")
    if newest is None:
        filesystem.delete_file(place)
        return
    found["checkpoint_results"] = [results[i] for i in kept]
    found["checkpoint_report_indices"] = [indices[i] for i in kept]
    found["latest_checkpoint_result"] = results[newest]
    content = json.dumps(found).encode()
    if isinstance(filesystem, LocalFileSystem):
        write_whole(Path(place), content)
    else:  # which replaces a file as a whole
        with filesystem.open_output_stream(place) as file:
            file.write(content)


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def failure_of(
    error: ray.train.TrainingFailedError, num_workers: int, board: Any, crash_file: Callable[[int], Path]
) -> RunFailed:
    """Return what a run of at most `num_workers` ended with: ClusterFailed where none of its ranks is to blame.

    In one line: rank, step, error, ranks waited for. board: where the workers report progress; crash_file: gives the
    file in which a rank has recorded the signal that it died of.
    """
    cause = getattr(error, "controller_failure", error)
    if isinstance(cause, RunFailed):
        return type(cause)(str(cause))
    failures: Mapping[int, BaseException] = getattr(cause, "worker_failures", {})
    if not failures:
        return (ClusterFailed if isinstance(cause, PreemptionError) else RunFailed)(failure_reason(cause))
    text = with_progress(describe(failures, crash_file), failures, num_workers, board)
    rank = rank_to_name(failures)
    is_own = is_own_fault(failures[rank], crash_file(rank))
    is_consequence = TIMED_OUT.search(text) or CUT_OFF.search(text)
    return RunFailed(text) if is_own and not is_consequence else ClusterFailed(text)


def with_progress(text: str, failures: Mapping[int, BaseException], num_workers: int, board: Any) -> str:
    """Return what is said of failures with what only the board knows: the last step, and the ranks waited for."""
    try:
        step, failed = ray.get(board.end.remote())
    except ray.exceptions.RayError:  # where the driver's node runs out of memory, it may be gone as well
        return text
    if "step" not in text.partition(":")[0]:
        text += f" (the last step reported is {step})"
    silent = set(range(num_workers)) - failed - failures.keys()
    if silent and (TIMED_OUT.search(text) or CUT_OFF.search(text)):
        text += f"; it waited for rank {', '.join(map(str, sorted(silent)))} in vain"
    return text

"""One trial of a sweep, in a process of its own: a run like any other, whose validations are reported to Ray Tune.

Neither torch nor MLflow is imported here: a sweep has such a process for each concurrent run, and it computes nothing.
What needs the recipe itself is asked of the sweep's `RunManager`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.error_text import last_line
from cluster.nodes.errors import crash_of, death_of
from cluster.polling import polling
from cluster.tracking.journal import nan_for_null, read_journal
from cluster.training.board import open_board
from cluster.training.fitting import fit
from cluster.training.selection import step_of_end
from kdcore.errors import ClusterFailed, Refused, RunFailed
from pipelines.files import make_folder
from pipelines.leases import leased

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class RunValidations:
    """Where a run's validations are found, and which of them is its last.

    path: of its metrics; last_step: the last one that it takes, unless its patience ends it before.
    """

    path: str
    steps_per_epoch: int
    last_step: int
    select: str
    patience_epochs: int | None
    evaluate_every_epochs: int


@dataclass(frozen=True)
class TrialTask:
    """A trial's run, as its process gets it, by way of Tune, which takes plain values only and writes them to files.

    config: the recipe as plain values, without credentials; command, tags: for its entry in the trackers; resources: of
    the one process that trains it, {"num_cpus": cores, "num_gpus": devices}, None where it has workers of its own.
    """

    name: str
    config: dict[str, Any]
    command: str
    tags: dict[str, str]
    run_dir: str
    validations: RunValidations
    resources: dict[str, float] | None

    def to_plain(self) -> dict[str, Any]:
        """Return the task in plain values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrialTask:
        """Return the task of what `to_plain` has returned."""
        return cls(**{**plain, "validations": RunValidations(**plain["validations"])})


def train_trial(plain: dict[str, Any], manager: Any, credentials: Mapping[str, str]) -> None:
    """Train the run of a `TrialTask`, in plain values. An error is its result; if this process dies, Tune tries again.

    manager: the sweep's `RunManager`, for runs with workers of their own; credentials: {dotted key: value} of the
    addresses in its recipe with what was cut out of the task.
    """
    task = TrialTask.from_plain(plain)
    try:
        with reporting_validations(task.validations, tune.report):
            if task.resources is None:
                drive(task, manager)
            else:
                ray.get(remote_launch(task.resources).remote(task, credentials))
    except Exception as error:
        cause = getattr(error, "cause", error)
        tune.report({"error": error_text(cause), "is_lost": is_loss(cause)})


def drive(task: TrialTask, manager: Any) -> None:
    """Let the run's workers train it, between its opening and its end, which the manager handles."""
    started = time.perf_counter()
    with leased(make_folder(Path(task.run_dir), "output_dir"), "train") as fence:
        job = ray.get(manager.open.remote(task, fence))
        if job is None:  # finished by the process that had the folder until now
            return
        board = open_board()
        board.open.remote(True)
        try:
            final = fit(job, board)
        except Exception as error:
            ray.get(manager.fail.remote(task, str(error) if isinstance(error, RunFailed) else None))
            raise
        ray.kill(board)
        ray.get(manager.finish.remote(task, final, time.perf_counter() - started))


def remote_launch(resources: Mapping[str, float]) -> Any:
    """Return `launch_run` as a Ray task, in another process: next to Tune there is no place for a run of num_workers 0.

    Like Ray Train's workers, it is outside the resources that Tune gives a trial, which has none to spare. resources:
    what it takes, {"num_cpus": cores, "num_gpus": devices}.
    """
    nowhere = PlacementGroupSchedulingStrategy(placement_group=None)
    return ray.remote(launch_run).options(**resources, max_retries=0, scheduling_strategy=nowhere)


def launch_run(task: TrialTask, credentials: Mapping[str, str]) -> None:
    """Train the task's run in this process."""
    from cluster.sweep.runs import launch_trial  # only here: the trial's own process needs no torch

    launch_trial(task, credentials)


def is_loss(error: BaseException) -> bool:
    """Return whether a run ended through the fault of what it ran on: another start may succeed."""
    return isinstance(error, ClusterFailed) or (death_of(error) is not None and not isinstance(error, RayTaskError))


def error_text(error: BaseException) -> str:
    """Return an error's last line, with its type where that says more."""
    kind = "" if isinstance(error, Refused | RunFailed) else f"{type(error).__name__}: "
    return crash_of(error, None) or kind + last_line(error)


@contextmanager
def reporting_validations(run: RunValidations, report: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Report every validation of a run once and in order, from a thread, until the run has ended.

    They are read from the run's own journal, where each is written before anything follows from it. Those of an attempt
    that was cut off are reported, too, as if for the first time.
    """
    reported = 0

    def look() -> None:
        nonlocal reported
        for row in validations(run):
            if row["step"] > reported:
                reported = row["step"]
                report(row)

    with polling(look, POLL_SECONDS):
        yield


def is_of_student(metric: str) -> bool:
    """Return whether a metric is a validation of the student on held-out images, not one of its teacher."""
    return metric.startswith("held_out/") and not metric.startswith("held_out/teacher_")


def validations(run: RunValidations) -> Iterator[dict[str, Any]]:
    """Yield the validations in a run's journal: epoch, step, whether it is the last, and every metric.

    A metric that was not finite is NaN.
    """
    rows = [nan_for_null(row) for row in read_journal(Path(run.path)) if any(map(is_of_student, row))]
    last_step = run.last_step
    if run.patience_epochs is not None:
        last_step = min(last_step, step_of_end(run, run.steps_per_epoch, rows) or last_step)
    for row in rows:
        metrics = {name: value for name, value in row.items() if name.startswith(("held_out/", "val/"))}
        epoch = row["step"] / run.steps_per_epoch
        yield {"epoch": epoch, "step": row["step"], "last": row["step"] >= last_step, **metrics}

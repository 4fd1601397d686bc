"""Ray Train's group of workers, started so that waiting for its place is reported and a lost worker counts as lost.

Ray Train retries when a worker is lost in training. While a group starts, it takes the loss of a worker for an error of
its own, ends the run, and keeps the place of a group that got that far. Here all phases are alike: losses in start-up,
the start after another loss, training, validation and the end count against `scaling.max_failures`.

All of it lives in the process of Ray Train's controller.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import ray
from ray._private.state import jobs
from ray.exceptions import ActorUnavailableError, RayError, RuntimeEnvSetupError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.controller.state import InitializingState, ReschedulingState, RestartingState
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import PlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

from cluster.error_text import last_line
from cluster.nodes.errors import CUT_OFF, FINAL, describe
from cluster.nodes.waiting import LOOK_SECONDS, Patience, Room, remedy_for, request_in_words
from cluster.training.recovery import refuse_to_repeat
from kdcore.errors import RunFailed

DEATH_SECONDS = 10.0  # from a worker's death to Ray's report of it, at most; a hanging worker has none
NOT_RUNNING = (InitializingState, RestartingState, ReschedulingState)


def is_unavailable(error: BaseException | None) -> bool:
    """Return whether Ray cannot reach a worker, and does not know yet whether it has died."""
    return isinstance(getattr(error, "health_check_failure", None), ActorUnavailableError)


def lacks_its_cause(errors: Sequence[BaseException | None]) -> bool:
    """Return whether ranks were cut off from one whose death is not known yet. errors: of every rank."""
    known = [error for error in errors if error is not None]
    is_open = len(known) < len(errors) or any(map(is_unavailable, known))
    return bool(known) and is_open and all(is_unavailable(error) or CUT_OFF.search(str(error)) for error in known)


class Workers(Protocol):
    """How many workers a run wants, and how long it waits for them: a recipe's `scaling`, or a `Job`."""

    @property
    def num_workers(self) -> int: ...
    @property
    def min_workers(self) -> int | None: ...
    @property
    def patience_seconds(self) -> float: ...


class Placement(ControllerCallback, WorkerGroupCallback):
    """Waits for the place of a run's workers, and says so; makes the controller start groups that may lose workers.

    What was lost, and why, is reported whether the run goes on or not. crash_file: gives the file in which a rank has
    recorded the signal that it died of.
    """

    def __init__(
        self, scaling: Workers, each: dict[str, float], board: Any, crash_file: Callable[[int], Path] | None = None
    ) -> None:
        self.scaling, self.each, self.board, self.crash_file = scaling, each, board, crash_file
        self.patience: Patience

    def after_controller_start(self, train_run_context: Any) -> None:
        """Begin, in the controller's process."""
        self.patience = Patience(
            self.scaling.patience_seconds, self.say, remedy_for(self.scaling.num_workers, self.scaling.min_workers)
        )
        TrainController.worker_group_cls = RestartableGroup

    def say(self, line: str) -> None:
        self.board.say.remote(line)

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait where an elastic run finds no room for its fewest workers: Ray asks again at once, forever."""
        if isinstance(current_state, NOT_RUNNING) and type(current_state) is type(previous_state):
            self.wait(self.scaling.min_workers or self.scaling.num_workers)
            time.sleep(LOOK_SECONDS / 4)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        if worker_group_status.errors:
            self.say_failure(worker_group_status.errors)

    def say_failure(self, errors: Mapping[int, Exception]) -> None:
        """Report a worker's death or error where a retry is possible: other errors end the run, which reports them."""
        if not any(isinstance(error, FINAL) for error in errors.values()):
            self.say(f"a worker failed: {describe(errors, self.crash_file)}")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self.patience.end()

    def wait(self, num_workers: int) -> None:
        """Note that there is no room yet for `num_workers`. RunFailed where patience has ended."""
        self.patience.wait(request_in_words(num_workers, self.each), self.each)


class WatchedPlace(PlacementGroupHandle):
    """The place of a group of workers. placement: told about once a second while it is missing."""

    def __init__(self, place: PlacementGroupHandle, placement: Placement, num_workers: int) -> None:
        self.place, self.placement, self.num_workers = place, placement, num_workers

    @property
    def placement_group(self) -> Any:
        return self.place.placement_group

    def ready(self) -> Any:
        return self.place.ready()

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Return whether the place is there.

        An elastic run is asked again after the timeout, since the cluster may have shrunk meanwhile; else patience
        decides. RunFailed where that has ended.
        """
        ends = time.monotonic() + timeout_seconds
        while not self.place.wait(LOOK_SECONDS):
            try:
                self.placement.wait(self.num_workers)
            except RunFailed:
                self.shutdown()
                raise
            if self.placement.scaling.min_workers and time.monotonic() > ends:
                return False
        return True

    def shutdown(self) -> None:
        self.place.shutdown()


def has_lost_driver() -> bool:
    """Return whether Ray has ended the job that this process belongs to.

    It gives the job's places back first, then ends the workers, and this process last, which takes that for the loss of
    workers. A place that it made in between would be kept by nobody, for ever.
    """
    job = ray.get_runtime_context().get_job_id()
    return any(known["JobID"] == job and known["IsDead"] for known in jobs())


class RestartableGroup(WorkerGroup):
    """A group of workers of which one may be lost at any time. A `Placement` is one of its callbacks."""

    @property
    def _placement(self) -> Placement:
        return next(callback for callback in self._callbacks if isinstance(callback, Placement))

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> PlacementGroupHandle:
        if has_lost_driver():
            raise RunFailed("the driver is gone")
        place = super()._create_placement_group(scaling_config, worker_group_context)
        return WatchedPlace(place, self._placement, worker_group_context.num_workers)

    def _start(self) -> None:
        try:
            super()._start()
        except InsufficientClusterResourcesError as error:
            raise RunFailed(self._never_enough()) from error
        except (RayError, WorkerGroupStartupFailedError) as error:
            lost = error.__cause__ if isinstance(error.__cause__, RayError) else error
            rank = self._rank_of(lost)
            self._give_place_back()
            if isinstance(lost, RuntimeEnvSetupError):
                raise RunFailed(f"a worker's environment could not be made: {last_line(lost)}") from error
            failure = WorkerHealthCheckFailedError("a worker was lost while its group started", failure=lost)
            who = "a worker" if rank is None else f"rank {rank}"
            failure.add_note(f"{who}, while the workers started")
            refuse_to_repeat({rank or 0: failure})
            self._placement.say_failure({rank or 0: failure})
            raise WorkerGroupError(str(failure), {rank or 0: failure}) from error

    def _poll_workers_and_collect_errors(self, timeout: float | None) -> list[WorkerStatus]:
        """Check each worker. Where one was cut off by another's death, wait for Ray's report of that death.

        A connection breaks at once, and Ray learns of a death a moment later: the former does not tell the cause.
        """
        statuses = super()._poll_workers_and_collect_errors(timeout)
        deadline = time.monotonic() + DEATH_SECONDS
        while lacks_its_cause([status.error for status in statuses]) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 4)
            later = super()._poll_workers_and_collect_errors(timeout)
            statuses = [
                new if old.error is None or is_unavailable(old.error) else old
                for old, new in zip(statuses, later, strict=True)
            ]
        return statuses

    def shutdown(self) -> None:
        """End the workers, some of which may be dead: that fails no run that has ended well."""
        try:
            super().shutdown()
        except RayError:
            self._give_place_back()

    def _give_place_back(self) -> None:
        if self.has_started():
            with suppress(RayError):
                self._worker_group_state.shutdown()
        self._clear_state()

    def _rank_of(self, lost: BaseException) -> int | None:
        """Return the rank of a lost worker, where the group already had ranks."""
        wanted = getattr(lost, "actor_id", None)
        if not self.has_started() or not wanted:
            return None
        ids = [worker.actor._actor_id.hex() for worker in self.get_workers()]
        return ids.index(wanted) if wanted in ids else None

    def _never_enough(self) -> str:
        context = self._worker_group_context
        asked = request_in_words(context.num_workers, context.resources_per_worker)
        room = Room.of_cluster().in_words(context.resources_per_worker)
        return f"{asked} is more than the cluster can ever have (now: {room}); {remedy_for(context.num_workers, None)}"

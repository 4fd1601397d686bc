"""Recording a run: metrics first as JSON lines in its folder, then in its trackers, with all it takes to run it again.

Only rank 0 writes. The driver makes the MLflow store, the experiment and the run (a fresh SQLite store does not survive
concurrent first users): while the workers start where the recipe names a tracker, which may refuse the run, else after
the first step. The training loop waits for no tracker.

Not here: how lines get to a tracker (`cluster.tracking.tracker`), and what is kept back (`cluster.tracking.delivery`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from cluster.recipe.config import RunConfig
from cluster.tracking.delivery import deliver
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import cut_journal, read_journal
from cluster.tracking.machine import MachineSampler
from cluster.tracking.mlflow_tracker import own_store, tracking_uri
from cluster.tracking.tracker import Courier, Status, Tracker, trackers_of, trackers_of_plugins
from kdcore.errors import Refused, RunFailed
from pipelines.files import finite_or_null, make_folder, not_written, write_text
from pipelines.leases import Fence, leased

RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 10.0  # with a tracker that is away, when all else is done

logger = logging.getLogger("stillhouse")


def open_run(config: RunConfig, command: str, tags: Mapping[str, str] | None = None) -> str:
    """Open this run in its trackers, new or again; return its id in MLflow.

    tags: of the run, besides its own. Refused for a new run whose store does not answer.
    """
    folder = RunFolder.of(config)
    make_folder(folder.path, "output_dir")
    write_text(folder.outbox, "")  # an end that was kept back no longer holds
    # A fresh SQLite store does not survive concurrent first users.
    with leased(folder.path.parent, "open a run in MLflow", name="mlflow", wait=True):
        for tracker in trackers_of(config):
            tracker.open(command, tags or {})
    run_id = folder.read_run_id()
    assert run_id is not None, "MLflow's tracker has just written it"
    return run_id


def is_opened_first(config: RunConfig) -> bool:
    """Return whether a run is opened in its trackers before its first step.

    A tracker that the recipe names may refuse it; one that has the run already may have lost it.
    """
    is_known = RunFolder.of(config).read_run_id() is not None
    return bool(config.tracking.also) or is_known or tracking_uri(config) != own_store(config)


def close_run(config: RunConfig, status: Status, result: Mapping[str, Any] | None = None) -> None:
    """Mark the run's end in its trackers, and deliver what its log could not; or leave both for later.

    result: of a finished run, written into its folder after its status: if cut off in between, the run goes on; if cut
    off later, its end can still be delivered.
    """
    folder = RunFolder.of(config)
    is_complete = not folder.outbox.exists()
    write_text(folder.outbox, status)
    if result is not None:
        folder.write_result(result)
    again = f"python -m ops deliver {config.output_dir}"
    if trackers_of_plugins(config):
        again = "run the same command again, which delivers"
    for tracker, error in deliver(config, is_sent=is_complete).items():
        try:
            with tracker.errors_as_refusals(f"the rest of {config.name} is kept in its folder: {again}"):
                raise error
        except (Refused, RunFailed) as refusal:
            remedy = "" if refusal is not error else f"; then send it: {again}"  # a file that is not taken, say
            logger.warning("%s%s", refusal, remedy)


class RunLog:
    """Writes one run's metrics: into its folder at once, and to its trackers from a thread of its own.

    first_step: metrics of later steps, left by an attempt that was cut off, are removed from the file: they come again.
    What an attempt has measured after that very step, such as the last one, stays and is not written twice. fence:
    tells whether the run is still this process's to write; wait_until_open: returns once it is open in its trackers.
    Trackers and the machine's sampler take seconds to start, and would slow the first step: they begin after it, one
    after the other in the log's thread, since MLflow cannot be imported by two threads at once. While a tracker is
    away, lines collect in the folder, as they do from the moment that it refuses one: that is said, and training goes
    on. A fault of a tracker's own code is raised by the next call, or by `close`.
    """

    def __init__(
        self,
        config: RunConfig,
        first_step: int,
        fence: Fence | None = None,
        wait_until_open: Callable[[], None] | None = None,
    ) -> None:
        self.config, self.folder, self.fence = config, RunFolder.of(config), fence
        self.wait_until_open = wait_until_open
        self.check_fence()
        cut_journal(self.folder.metrics, first_step)
        self.known = {kind_of(row) for row in read_journal(self.folder.metrics) if row.get("step") == first_step}
        self.file = self.folder.metrics.open("a")
        self.first_step = first_step
        self.begun, self.wake, self.closing, self.abandoned = Event(), Event(), Event(), Event()
        self.patience_ends = math.inf
        self.error: Exception | None = None
        self.deliveries: list[_Delivery] = []
        self.files: list[Path] = []
        self.thread = Thread(target=self._keep_delivering, name="tracking", daemon=True)
        self.thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write metrics after `step` optimiser steps; one that is not finite becomes null."""
        self._raise_error()
        self.check_fence()
        row = finite_or_null({"step": step, "time": time.time(), **metrics})
        if kind_of(row) in self.known:
            return
        try:
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            raise Refused(not_written(self.folder.metrics, error)) from error
        if step > self.first_step:
            self.begin()
        self.wake.set()

    def begin(self) -> None:
        """Start to deliver to trackers and to watch the machine: the first step is done."""
        self.begun.set()

    def add_file(self, path: Path) -> None:
        """Have a file of the run's folder sent."""
        self._raise_error()
        self.files.append(path)
        self.wake.set()

    def close(self) -> None:
        """Wait until everything is delivered; for a tracker that is away, a short while."""
        self._end()
        self.thread.join()
        self.file.close()
        self._raise_error()

    def abandon(self) -> None:
        """End without delivering what is left, since the run has failed: closing the run delivers it.

        Waits a short while for what is under way. An error of a tracker is not raised: it is not what ended the run.
        """
        self.abandoned.set()
        self._end()
        self.thread.join(PATIENCE_SECONDS)
        self.file.close()

    def _end(self) -> None:
        self.patience_ends = time.monotonic() + PATIENCE_SECONDS
        self.closing.set()
        self.begun.set()
        self.wake.set()

    def check_fence(self) -> None:
        """Raise RunFailed where the run belongs to another process by now, since the driver of this one was killed."""
        if self.fence is not None:
            self.fence.check()

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def _keep_delivering(self) -> None:
        """Open the run, watch the machine and deliver whenever there is something, until the log is closed."""
        machine = None
        try:
            self.begun.wait()
            if self.abandoned.is_set():
                return
            if self.wait_until_open is not None:
                self.wait_until_open()
            if self.config.tracking.system_metrics and not self.closing.is_set():
                machine = MachineSampler(self.folder.system, self.wake)
            self.deliveries = [_Delivery(tracker, self.files) for tracker in trackers_of(self.config)]
            while True:
                self.wake.wait()
                self.wake.clear()
                if self.abandoned.is_set():
                    return
                is_closing = self.closing.is_set()  # whatever was written before this look is delivered below
                if is_closing and machine is not None:
                    machine.close()
                if self._deliver_all():
                    if is_closing:
                        if not any(one.is_refused for one in self.deliveries):
                            self.folder.outbox.unlink(missing_ok=True)
                        return
                else:
                    if time.monotonic() > self.patience_ends:
                        return  # the outbox says that something is left
                    self.wake.set()
                    time.sleep(RETRY_SECONDS)
        except Exception as error:
            self.error = error
        finally:
            if machine is not None:
                machine.close()
            for one in self.deliveries:
                one.tracker.close()

    def _deliver_all(self) -> bool:
        """Deliver to every tracker; return whether none is away."""
        return not [one for one in self.deliveries if not one.deliver()]


def kind_of(row: Mapping[str, Any]) -> tuple[int, frozenset[str]]:
    """Return the key that tells two rows of a journal apart: the step, and what was measured after it."""
    return row["step"], frozenset(row)


class _Delivery:
    """One tracker's share of a run's log. files: all that are to be sent; it counts those that were.

    What the tracker refuses is left to the run's end, which says so: training does not stop for it. A file that it does
    not take keeps nothing else back.
    """

    def __init__(self, tracker: Tracker, files: list[Path]) -> None:
        self.tracker, self.courier, self.files, self.num_sent = tracker, Courier(tracker), files, 0
        self.is_refused = False  # at least a file
        self.is_over = False  # it refuses all there is

    def deliver(self) -> bool:
        """Send what there is; return False where the tracker is away. Raises a fault of its own code."""
        if self.is_over:
            return True
        try:
            self.courier.deliver()
            while self.num_sent < len(self.files):
                try:
                    self.tracker.send_file(self.files[self.num_sent])
                except Refused:
                    self.is_refused = True
                self.num_sent += 1
        except Exception as error:
            if self.tracker.is_away(error):
                return False
            try:
                with self.tracker.errors_as_refusals("training goes on, and its folder keeps what comes"):
                    raise error
            except (Refused, RunFailed) as refusal:
                logger.warning("%s", refusal)
            self.is_refused = self.is_over = True
        return True

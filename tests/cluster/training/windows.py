"""Kills a worker in a window of its group's life that no timing hits: Ray Train calls this in its controller.

The windows of a run's later life are hit by the plug-in of `test_windows.py`.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

NUM_STARTS = 6  # of the whole run: one for each loss at the start, two for the losses of the plug-in, and the last


class KillWhileStarting(WorkerGroupCallback):
    """The first groups lose their last worker, each in another window; the last one when it has finished."""

    def __init__(self) -> None:
        self.starts = 0
        self.workers: list[Any] = []

    def before_init_train_context(self, workers: list[Any]) -> dict[str, Any]:
        self.starts, self.workers = self.starts + 1, workers
        self.kill_at(1)
        return {}

    def after_worker_group_start(self, worker_group: Any) -> None:
        self.kill_at(2)

    @contextmanager
    def on_worker_group_start(self) -> Any:
        yield
        self.kill_at(3)

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        self.kill_at(NUM_STARTS)

    def kill_at(self, start: int) -> None:
        if self.starts == start:
            os.kill(self.workers[-1].metadata.pid, signal.SIGKILL)

"""Live progress: rank 0 reports, watchers ask.

Between them stands a board (`cluster.training.board`), where workers train the run; a run in the watcher's own process
calls the watcher itself, and has nothing to do with Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cluster.training.opening import NotOpened

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

Watcher = Callable[[dict[str, Any], list[str]], None]  # (state, messages since the last call)

GAUGES = {
    "step": ("stillhouse_step", "Optimiser steps done."),
    "speed/images_per_second": ("stillhouse_images_per_second", "Training images per second, over all workers."),
    "train/loss": ("stillhouse_loss", "Training loss, the mean since the last report."),
    "data/wait_share": ("stillhouse_data_wait_share", "Share of the time that training waits for data, 0 to 1."),
    "checkpoint/seconds": ("stillhouse_checkpoint_seconds", "Seconds that the last checkpoint held training up."),
}


@dataclass
class Reporter:
    """A rank's side of the board, which never waits and never fails a run; only rank 0 reports progress.

    watch, open_run: called instead where there is no board, because the one worker runs in the driver's process.
    """

    board: Any
    rank: int
    run: str
    watch: Watcher | None = None
    open_run: Callable[[], None] | None = None

    def begin(self) -> None:
        if self._tells:
            self.board.begin.remote(self.run)

    def update(self, **state: Any) -> None:
        if self.watch is not None:
            self.watch(state, [])
        if self._tells:
            self.board.update.remote(state)
            for key, gauge in self._gauges.items():
                if key in state:
                    gauge.set(state[key], tags={"run": self.run})

    @contextmanager
    def timing(self, key: str) -> Iterator[None]:
        """Give the seconds that the body takes to a gauge."""
        started = time.perf_counter()
        yield
        if self._tells:
            self._gauges[key].set(time.perf_counter() - started, tags={"run": self.run})

    def say(self, message: str) -> None:
        if self.watch is not None:
            self.watch({}, [message])
        if self._tells:
            self.board.say.remote(message)

    def wait_until_open(self) -> None:
        """Have the driver open the run in its trackers, and wait for it. NotOpened where it could not."""
        if self.open_run is not None:
            self.open_run()
        if self.board is None:
            return
        import ray

        if not ray.get(self.board.opened.remote()):
            raise NotOpened("the driver could not open the run in its trackers")

    def fail(self) -> None:
        """Note that this rank is about to raise an error."""
        if self.board is not None:
            self.board.fail.remote(self.rank)

    @property
    def _tells(self) -> bool:
        return self.board is not None and self.rank == 0

    @cached_property
    def _gauges(self) -> dict[str, Gauge]:
        from ray.util.metrics import Gauge

        return {key: Gauge(name, text, tag_keys=("run",)) for key, (name, text) in GAUGES.items()}

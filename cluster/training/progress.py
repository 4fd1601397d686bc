"""Live progress: rank 0 tells, whoever watches asks.

A tiny Ray actor stands between them, so that it works from any node. The same numbers are Ray metrics, which its
dashboard and Prometheus show.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdcore.errors import Refused

Watcher = Callable[[dict[str, Any], list[str]], None]  # (state, messages since the last call)

GAUGES = {
    "step": ("stillhouse_step", "Optimiser steps done."),
    "speed/images_per_second": ("stillhouse_images_per_second", "Training images per second, over all workers."),
    "train/loss": ("stillhouse_loss", "Training loss, the mean since the last report."),
    "data/wait_share": ("stillhouse_data_wait_share", "Share of the time that training waits for data, 0 to 1."),
    "checkpoint/seconds": ("stillhouse_checkpoint_seconds", "Seconds that the last checkpoint held training up."),
}
STARTS = ("stillhouse_starts", "How often the run's workers were started; each loss of one starts them anew.")


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the latest state of one run, and what was said since the last look.

    Also which ranks have raised an error, and whether the driver has opened the run in its trackers.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.messages: list[str] = []
        self.failed: set[int] = set()
        self.stop_asked = asyncio.Event()
        self.opening = asyncio.Event()
        self.is_open = False
        self.num_starts, self.starts = 0, Gauge(*STARTS, tag_keys=("run",))

    def open(self, is_open: bool) -> None:
        """Note that the driver has opened the run in its trackers, or has failed to."""
        self.is_open = is_open
        self.opening.set()

    async def opened(self) -> bool:
        """Return whether it has, as soon as that is known."""
        await self.opening.wait()
        return self.is_open

    def stop(self) -> None:
        """Note that the run is asked to end, after the step that it is at, with a checkpoint."""
        self.stop_asked.set()

    async def stopping(self) -> None:
        """Return as soon as it is."""
        await self.stop_asked.wait()

    def begin(self, run: str) -> None:
        """Forget errors: a new group of workers starts."""
        self.failed.clear()
        self.num_starts += 1
        self.starts.set(self.num_starts, tags={"run": run})

    def update(self, state: dict[str, Any]) -> None:
        self.state = state

    def say(self, message: str) -> None:
        self.messages.append(message)

    def fail(self, rank: int) -> None:
        self.failed.add(rank)

    def look(self) -> tuple[dict[str, Any], list[str]]:
        """Return the state, and the messages that have not been handed out yet."""
        messages, self.messages = self.messages, []
        return self.state, messages

    def end(self) -> tuple[int, set[int]]:
        """Return, after a failure, the last step reported and the ranks that have raised an error themselves."""
        return self.state.get("step", 0), self.failed


def open_board() -> Any:
    """Start a board on the driver's own node: whichever other node dies, the board stays."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ProgressBoard.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@dataclass
class Reporter:
    """A rank's side of the board, which never waits and never fails a run; progress is reported by rank 0 alone.

    watch: called instead where there is no board, because the one worker runs in the driver's process.
    """

    board: Any
    rank: int
    run: str
    watch: Watcher | None = None

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

    def wait_for_driver(self) -> None:
        """Wait until the driver has opened the run. Refused where it could not: the driver says why."""
        if self.board is not None and not ray.get(self.board.opened.remote()):
            raise Refused("the driver could not open the run in MLflow")

    def fail(self) -> None:
        """Note that this rank is about to raise an error."""
        if self.board is not None:
            self.board.fail.remote(self.rank)

    @property
    def _tells(self) -> bool:
        return self.board is not None and self.rank == 0

    @cached_property
    def _gauges(self) -> dict[str, Gauge]:
        return {key: Gauge(name, text, tag_keys=("run",)) for key, (name, text) in GAUGES.items()}

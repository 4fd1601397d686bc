"""The board of a run whose workers train it: a tiny Ray actor between rank 0 and the watchers, seen from any node.

The numbers on it are Ray metrics too, which its dashboard and Prometheus show.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.metrics import Gauge

from cluster.nodes.start import on_this_node
from cluster.polling import polling
from cluster.training.progress import Watcher

STARTS_METRIC = ("stillhouse_starts", "How often the run's workers were started; each loss of one restarts them.")


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the latest state of one run, and the messages since the last look.

    Also which ranks have raised an error, and whether the run is to be, and is, open in its trackers.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.messages: list[str] = []
        self.failed: set[int] = set()
        self.stop_asked = asyncio.Event()
        self.asked_to_open, self.opening = asyncio.Event(), asyncio.Event()
        self.is_open = False
        self.num_starts, self.starts = 0, Gauge(*STARTS_METRIC, tag_keys=("run",))

    def open(self, is_open: bool) -> None:
        """Note that the driver has opened the run in its trackers, or has failed to."""
        self.is_open = is_open
        self.opening.set()

    async def wanted(self) -> None:
        """Return as soon as the run is to be open."""
        await self.asked_to_open.wait()

    async def opened(self) -> bool:
        """Ask for the run to be opened; return whether it is, as soon as that is known."""
        self.asked_to_open.set()
        await self.opening.wait()
        return self.is_open

    def stop(self) -> None:
        """Note that the run is asked to end, after the step that it is at, with a checkpoint."""
        self.stop_asked.set()

    async def stopping(self) -> None:
        """Return as soon as the run is asked to end."""
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
    """Start a board on the driver's own node."""
    return ProgressBoard.options(scheduling_strategy=on_this_node()).remote()  # type: ignore[attr-defined]


@contextmanager
def polling_progress(board: Any, watch: Watcher | None) -> Iterator[None]:
    """Call `watch(state, messages)` several times a second, from a thread, until the run ends."""
    if watch is None:
        yield
        return

    def look() -> None:
        with suppress(ray.exceptions.RayError):  # the board is gone: nothing to see, and no reason to end a run
            watch(*ray.get(board.look.remote()))

    with polling(look, 0.3):
        yield

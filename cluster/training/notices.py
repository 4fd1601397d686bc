"""What may interrupt a run between two steps: its driver asks it to end, or Ray announces that a node is taken away.

Every rank has the same answer after the same step, and none waits for it: it is exchanged during the next step.

Not here: how signals reach the driver (`cluster.interruption`).
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from cluster.rank import LargestOfRanks, Rank

LOOK_SECONDS = 5.0  # as often as Ray Train's own watcher asks which nodes are drained


class Wish(IntEnum):
    """What a rank wants all of them to do after a step; the largest wins."""

    NOTHING = 0
    LOOK = 1
    END = 2


@dataclass(frozen=True)
class Answer:
    """What is to be done after a step.

    ends: the run is asked to end. notice: the nodes that are taken away, where that has just been announced.
    """

    ends: bool = False
    notice: str | None = None


class Notices:
    """Asks after every step whether the run goes on.

    stop: set once the driver asks the run to end; looked at on the first rank. watches_nodes: whether Ray Train watches
    for nodes that are taken away.
    """

    def __init__(self, rank: Rank, stop: threading.Event, watches_nodes: bool) -> None:
        self.rank, self.stop, self.watches_nodes = rank, stop, watches_nodes
        self.largest = LargestOfRanks(rank)
        self.looked = time.monotonic()
        self.known: Any = None

    def after_step(self) -> Answer:
        """Return, on every rank, what is to be done; with several ranks, one step after it was asked for."""
        wish = self.largest.exchange(self.own_wish())
        if wish == Wish.LOOK:
            import ray.train  # only here and below: a run in one process has no Ray

            info = ray.train.get_preemption_info()
            if info is not None and info != self.known:
                self.known = info
                return Answer(notice=in_words(info))
        return Answer(ends=wish == Wish.END)

    def own_wish(self) -> Wish:
        """Return what this rank wants; the first speaks for all."""
        if not self.rank.first:
            return Wish.NOTHING
        if self.stop.is_set():
            return Wish.END
        if self.watches_nodes and time.monotonic() - self.looked >= LOOK_SECONDS:  # Ray's answer is a barrier
            self.looked = time.monotonic()
            return Wish.LOOK
        return Wish.NOTHING

    def close(self) -> None:
        """Wait for the pending exchange between the ranks."""
        self.largest.finish()


def in_words(info: Any) -> str:
    """Return Ray Train's notice as a phrase: which nodes, with which ranks, until when."""
    nodes = ", ".join(node[:8] for node in info.preempted_node_ids)
    ranks = ", ".join(map(str, info.preempted_ranks))
    until = (
        "soon"
        if info.deadline_ms is None
        else f"at {datetime.fromtimestamp(info.deadline_ms / 1000, UTC):%H:%M:%S} UTC"
    )
    return f"node {nodes} with rank {ranks} is taken away {until}"


def stop_event(board: Any, rank: Rank) -> threading.Event:
    """Return an event that is set, on the first rank, once the driver has asked, on a run's board, that it ends."""
    import ray

    asked = threading.Event()

    def wait() -> None:
        with suppress(ray.exceptions.RayError):  # the board is gone, and with it the driver
            ray.get(board.stopping.remote())
            asked.set()

    if rank.first:
        threading.Thread(target=wait, name="stop", daemon=True).start()
    return asked

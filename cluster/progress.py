"""Live progress: rank 0 tells, whoever watches asks.

A tiny Ray actor stands between them, so that it works from any node and shows in Ray's dashboard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray


@ray.remote(num_cpus=0, max_restarts=-1)
class ProgressBoard:
    """Holds the latest state of one run and the messages since the last look."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.messages: list[str] = []

    def update(self, state: dict[str, Any]) -> None:
        self.state = state

    def say(self, message: str) -> None:
        self.messages.append(message)

    def look(self) -> tuple[dict[str, Any], list[str]]:
        """The state, and the messages that have not been handed out yet."""
        messages, self.messages = self.messages, []
        return self.state, messages


@dataclass
class Reporter:
    """Rank 0's side of the board; on every other rank it does nothing. Never waits and never fails a run."""

    board: Any
    active: bool

    def update(self, **state: Any) -> None:
        if self.active and self.board is not None:
            self.board.update.remote(state)

    def say(self, message: str) -> None:
        if self.active and self.board is not None:
            self.board.say.remote(message)

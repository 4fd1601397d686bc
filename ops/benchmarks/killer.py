"""Kills workers of a run on this process's own Ray, and records how long the run takes to go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import psutil


class Killer:
    """Kills a worker of a run at given seconds since its launch, or as soon as it has taken given steps.

    While the run has no worker, the first that appears is killed, so a start can be hit, too.
    """

    def __init__(self, times: Sequence[float] = (), steps: Sequence[int] = ()) -> None:
        self.times, self.steps = list(times), list(steps)
        self.launched = time.monotonic()
        self.step, self.is_starting = 0, True
        self.doomed: set[int] = set()  # processes of worker groups that a kill has ended
        self.killed: list[float] = []  # seconds since the launch
        self.restart_seconds: list[float] = []  # from a kill to the first step seen after it

    @property
    def now(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.launched

    def look(self) -> None:
        """Kill the last worker of the group if a kill is due."""
        due = self.times if self.times and self.times[0] <= self.now else self.steps
        if due is self.steps and not (self.steps and self.steps[0] <= self.step):
            return
        if alive := [pid for pid in worker_processes() if pid not in self.doomed]:
            os.kill(alive[-1], signal.SIGKILL)
            due.pop(0)
            self.doomed.update(alive)
            self.killed.append(self.now)

    def watch(self, state: dict[str, Any], messages: list[str]) -> None:
        """Record the run's step, and the time from a kill to the next step."""
        self.step = state.get("step", 0)
        if self.is_starting and self.step and self.killed:
            self.restart_seconds.append(self.now - self.killed[-1])
        self.is_starting = not self.step


def worker_processes() -> list[int]:
    """Return the processes of training workers that this process's Ray has started, in ascending order."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:  # it has just ended
            continue
    return sorted(found)

"""The journal of a sweep: what was tried, what it scored, what was decided, in the order in which it happened.

One JSON object per line, written before anything follows from it. A sweep that is started again reads it, and is where
it was: the search has been told the same scores in the same order, and no decision is made twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.sweep.space import Point
from cluster.tracking.journal import cut_journal, nan_for_null, read_journal
from cluster.training.selection import score_of
from kdcore.errors import Refused
from pipelines.files import finite_or_null, make_folder, not_written

End = Literal["finished", "stopped", "failed", "lost"]
Event = dict[str, Any]
Listener = Callable[[Event, "Trial"], None]


@dataclass
class Trial:
    """One run of a sweep: a point, by its number, with a seed.

    reports: {epoch, step, metric: value, ...} of every validation so far, NaN for a value that was not finite; end:
    None while it runs, or waits to be continued; reason: why it was stopped, failed or lost; result: of a finished run.
    A run is lost when what it ran on was lost: the same command tries it again.
    """

    name: str
    number: int
    point: Point
    seed: int
    reports: list[dict[str, Any]] = field(default_factory=list)
    end: End | None = None
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def epoch(self) -> float:
        """The epoch of the last report."""
        return self.reports[-1]["epoch"] if self.reports else 0.0

    def score(self, metric: str, selects_best: bool) -> float | None:
        """Return the score of the weights that the run deploys, or would if it ended here.

        Those are the last, or those that were best on the held-out images. None before the first report, of a run that
        failed, and where the value is not finite: it compares with nothing.
        """
        if not self.reports or self.end in ("failed", "lost"):
            return None
        row = max(self.reports, key=lambda row: score_of("held_out", row)) if selects_best else self.reports[-1]
        value = float(row[metric])
        return value if math.isfinite(value) else None


class SweepJournal:
    """A sweep's journal, and its trials by name, in the order in which they began.

    Listeners are called with (event, trial) after every event; those added before `open` get past events, too, one by
    one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: dict[str, Trial] = {}
        self.listeners: list[Listener] = []

    def listen(self, listener: Listener) -> None:
        """Call a listener with every event from now on."""
        self.listeners.append(listener)

    def read(self) -> None:
        """Read the past events without touching the file: another process may be adding to it."""
        for event in read_journal(self.path):
            self._happened(event)

    def open(self) -> None:
        """Read the past events, and remove a line that was cut off; from now on events can be added."""
        make_folder(self.path.parent, "output_dir")
        if self.path.exists():
            cut_journal(self.path)
        self.read()
        self.file = self.path.open("a")

    def begin(self, name: str, number: int, point: Point, seed: int) -> Trial:
        """Write that a trial begins, and return it."""
        self._write({"event": "begin", "trial": name, "number": number, "point": point, "seed": seed})
        return self.trials[name]

    def report(self, name: str, row: dict[str, Any], stop: str) -> None:
        """Write down a validation of a trial. stop: why the trial ends with it; empty where it goes on."""
        self._write({"event": "report", "trial": name, "row": finite_or_null(row), "stop": stop})

    def end(self, name: str, end: End, reason: str = "", result: dict[str, Any] | None = None) -> None:
        """Write that a trial has ended, and how. reason: why it failed or was lost; result: of a run that finished."""
        self._write({"event": "end", "trial": name, "end": end, "reason": reason, "result": result or {}})

    def retry(self, name: str) -> None:
        """Write that a trial which failed or was lost is to be continued after all."""
        self._write({"event": "retry", "trial": name})

    def _write(self, event: Event) -> None:
        try:
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()
        except OSError as error:
            raise Refused(not_written(self.path, error)) from error
        self._happened(event)

    def _happened(self, event: Event) -> None:
        name = event["trial"]
        if event["event"] == "begin":
            self.trials[name] = Trial(name, event["number"], event["point"], event["seed"])
        trial = self.trials[name]
        if event["event"] == "report":
            trial.reports.append(nan_for_null(event["row"]))
            if event["stop"]:
                trial.end, trial.reason = "stopped", event["stop"]
        elif event["event"] == "end":
            trial.end, trial.reason, trial.result = event["end"], event["reason"], event["result"]
        elif event["event"] == "retry":
            trial.end, trial.reason = None, ""
        for listener in self.listeners:
            listener(event, trial)

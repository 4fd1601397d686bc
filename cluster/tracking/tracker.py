"""Where a run's metrics and files go, besides its own folder: the interface of a tracking system, and its registry.

A run's folder comes first: whatever is tracked is a line of a journal, or a file, before any tracker gets it. So a
tracker is handed the run's own lines in order, may be away for hours, and is brought up to date later, even by another
process. A new one is a subclass with a `name` in a module that is imported before the recipe is read.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused, one_line
from kdcore.registry import Registry

Row = dict[str, Any]  # {"step": int, "time": seconds since the epoch, metric: number or None}
Status = Literal["FINISHED", "FAILED", "KILLED"]

VALUES_AT_ONCE = 500


class Tracker(ABC):
    """One run's side of a tracking system.

    The driver calls `open` before the run's first line and `end` after its last; in between rank 0, or a later
    delivery, calls the others. Each may raise what its client raises; `is_away` says for which errors waiting helps.
    """

    name: ClassVar[str]
    is_shared: ClassVar[bool] = True
    """Whether several processes may send the same run's lines at the same time."""
    registry: ClassVar[Registry[Tracker]] = Registry("trackers")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.registry.add(cls.name, cls)

    def __init__(self, config: RunConfig) -> None:
        self.config, self.folder = config, RunFolder.of(config)

    @abstractmethod
    def open(self, command: str, tags: Mapping[str, str]) -> None:
        """Make the run with its recipe, or mark the existing one as going on.

        command: starts the run again; tags: further facts of it, such as those of a sweep.
        """

    @abstractmethod
    def send(self, rows: list[Row]) -> None:
        """Take lines of a journal in their order; those that are there already are left as they are."""

    @abstractmethod
    def send_file(self, path: Path) -> None:
        """Take a file of the run's folder, in place of an older one of its name."""

    @abstractmethod
    def missing_files(self) -> list[Path]:
        """Return the run's existing files that were not sent."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Mark the run's end."""

    def close(self) -> None:  # noqa: B027  most trackers hold nothing
        """Release what this process holds: it sends nothing more."""

    def is_away(self, error: BaseException) -> bool:
        """Return whether an error means that the system cannot be reached now, so that trying again later helps."""
        return False

    @contextmanager
    def errors_as_refusals(self, remedy: str) -> Iterator[None]:
        """Turn an error of the system into a Refused that names it, in one line; remedy: what to do."""
        try:
            yield
        except Exception as error:
            if not self.is_away(error):
                raise
            raise Refused(f"the tracker {self.name} does not answer ({one_line(error)}); {remedy}") from error


class Courier:
    """Takes one run's journals to a tracker; each call of `deliver` goes on where the last one stopped."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.sent_bytes = dict.fromkeys(tracker.folder.journals, 0)

    def deliver(self) -> None:
        """Send every line that is complete."""
        for journal in self.sent_bytes:
            for rows, end in self.unsent(journal):
                self.tracker.send(rows)
                self.sent_bytes[journal] = end

    def unsent(self, journal: Path) -> Iterator[tuple[list[Row], int]]:
        """Yield (some rows, the end of the last of them in the file), until the journal's end."""
        rows: list[Row] = []
        count, end = 0, self.sent_bytes[journal]
        if not journal.exists():
            return
        with journal.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                rows.append(json.loads(line))
                end, count = end + len(line), count + len(rows[-1])
                if count >= VALUES_AT_ONCE:
                    yield rows, end
                    rows, count = [], 0
        if rows:
            yield rows, end


def trackers_of(config: RunConfig) -> list[Tracker]:
    """Return MLflow's tracker of a run, and those of `tracking.also`. Refused for one that is not registered."""
    from cluster.tracking.mlflow_tracker import MlflowTracker

    known, names = known_trackers(), list(dict.fromkeys([MlflowTracker.name, *config.tracking.also]))
    for name in names:
        if name not in known:
            near = ", ".join(known.nearest(name))
            raise Refused(f"tracking.also: unknown tracker {name!r}; did you mean {near}?")
    return [known[name](config) for name in names]


def known_trackers() -> Registry[Tracker]:
    """Return every registered tracker, including ours."""
    from cluster.tracking import mlflow_tracker, tensorboard_tracker  # noqa: F401  they register themselves

    return Tracker.registry


def trackers_of_plugins(config: RunConfig) -> list[str]:
    """Return the trackers that only a process with the recipe's plug-ins knows."""
    package, known = __name__.rpartition(".")[0], known_trackers()
    names = dict.fromkeys(config.tracking.also)
    return [name for name in names if name not in known or not known[name].__module__.startswith(f"{package}.")]


def number_or_none(value: Any) -> float | None:
    """Return a row's value as a number; None for one that was not finite, which JSON cannot express."""
    return None if value is None else float(value)

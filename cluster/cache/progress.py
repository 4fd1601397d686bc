"""How far a cache build has come, for its watcher."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pipelines.cache.manifest import Plan
from pipelines.cache.rows import row_bytes
from pipelines.cache.store import Unit

# Called a few times a second at most, with `Progress.state` (empty before there is one) and with new messages.
Watcher = Callable[[dict[str, Any], list[str]], None]


class Progress:
    """How far a build has come: rows finished in this session, including those of units at work."""

    interval_seconds = 0.3  # between two calls of the watcher

    def __init__(self, plan: Plan, missing: list[Unit], watch: Watcher | None) -> None:
        self.row_bytes = {name: row_bytes(part.columns) for name, part in plan.parts.items()}
        self.total = sum(unit.stop - unit.start for unit in plan.units())
        self.to_do = sum(unit.stop - unit.start for unit in missing)
        self.done: dict[Unit, int] = {}
        self.messages: list[str] = []
        self.watch, self.started, self.told = watch, time.perf_counter(), 0.0
        if self.to_do < self.total:
            self.messages.append(f"{self.total - self.to_do:,} of {self.total:,} rows are there already")

    def state(self) -> dict[str, Any]:
        """phase; step and total_steps in rows; images_per_second, bytes and eta_seconds of this session."""
        rows = sum(self.done.values())
        rate = rows / (time.perf_counter() - self.started)
        return {
            "phase": "building the cache",
            "step": self.total - self.to_do + rows,
            "total_steps": self.total,
            "images_per_second": rate,
            "bytes": sum(rows * self.row_bytes[unit.part] for unit, rows in self.done.items()),
            "eta_seconds": (self.to_do - rows) / rate if rate else None,
        }

    def tell(self, last: bool = False) -> None:
        """Call the watcher, if it is time."""
        if self.watch is not None and (last or time.perf_counter() - self.told > self.interval_seconds):
            self.watch(self.state(), self.messages)
            self.messages, self.told = [], time.perf_counter()

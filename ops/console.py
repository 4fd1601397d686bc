"""What a person sees while a run goes on: a live bar on a terminal, plain lines in a job's log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# Tables in a job's log are as wide as they need to be; a terminal knows its own width.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
PLAIN_LINE_SECONDS = 10.0


def say(text: str) -> None:
    """Print a line, which the terminal may break."""
    console.print(text, soft_wrap=True, markup=False)


def complain(text: str) -> None:
    """Print an error on standard error, in one line."""
    print(f"stillhouse: {' '.join(text.split())}", file=sys.stderr)


def rate(metrics: dict[str, Any]) -> str:
    """Return images/s, loss, top-1 and the share of time spent waiting for data, as a run last reported them."""
    parts = []
    for key, text in (
        ("system/images_per_second", "{:,.0f} images/s"),
        ("train/loss", "loss {:.3f}"),
        ("train/top1", "top-1 {:.1%}"),
        ("data/wait_share", "data wait {:.0%}"),
    ):
        if key in metrics:
            parts.append(text.format(metrics[key]))
    return "  ".join(parts)


class RunView:
    """Watches one run: call it with (state, messages) as often as they come; use as a context manager."""

    def __init__(self, name: str) -> None:
        self.name, self.live = name, console.is_terminal
        self.last_line = 0.0
        self.last_state: dict[str, Any] = {}
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self.task = self.bar.add_task(f"{name}: starting", total=None, rate="")

    def __enter__(self) -> RunView:
        if self.live:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.bar.stop()

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        for message in messages:
            say(f"{self.name}: {message}")
        if not state or state == self.last_state:
            return
        self.last_state = state
        if self.live:
            self.bar.update(
                self.task,
                description=f"{self.name}: {state['phase']}",
                completed=state.get("step", 0),
                total=state.get("total_steps"),
                rate=rate(state),
            )
        elif "step" in state and (state["step"] == state["total_steps"] or self._line_is_due()):
            say(f"{self.name}: step {state['step']}/{state['total_steps']}  {rate(state)}")

    def _line_is_due(self) -> bool:
        now = time.monotonic()
        if now - self.last_line < PLAIN_LINE_SECONDS:
            return False
        self.last_line = now
        return True


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def percent(value: float | None) -> str:
    """Return a fraction in percent; '-' for None."""
    return "-" if value is None else f"{value:.2%}"

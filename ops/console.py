"""What a person sees during a run: a live bar on a terminal, plain lines in a job's log."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from kdcore.credentials import without_credentials
from ops.bar import OneLineProgress
from ops.resizing import ResizeHook

# Names of classes and files are shown as they are: as markup, `cat [copy].jpg` is `cat .jpg`, and `[/b]` is an error.
# Tables in a job's log are as wide as they need to be; a terminal knows its own width.
console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 120)
PLAIN_LINE_SECONDS = 10.0
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}  # C0, DEL and C1
_CONTROLS_IN_LINES = {code: shown for code, shown in _CONTROLS.items() if chr(code) not in "\n\t"}


def visible(text: str, in_lines: bool = False) -> str:
    """Return a text without credentials, its control characters spelt: in a name, they would command the terminal.

    in_lines: whether line ends and tabs are the text's own, and stay.
    """
    return without_credentials(text).translate(_CONTROLS_IN_LINES if in_lines else _CONTROLS)


def say(text: str) -> None:
    """Print a line, which the terminal may wrap."""
    console.print(visible(text, in_lines=True), soft_wrap=True)


def complain(text: str) -> None:
    """Print an error on standard error, in one line."""
    print(f"stillhouse: {' '.join(visible(text, in_lines=True).split())}", file=sys.stderr)


def print_traceback() -> None:
    """Print the current error's traceback on standard error."""
    print(visible(traceback.format_exc(), in_lines=True), end="", file=sys.stderr)


class _VisibleLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), in_lines=True)


if logging.lastResort is not None:  # prints warnings where nothing else takes them
    logging.lastResort.setFormatter(_VisibleLines())


def progress_parts(metrics: dict[str, Any]) -> list[str]:
    """Return the loss, top-1, images/s and share of time spent waiting for data that a run last reported, as texts."""
    texts = {
        "train/loss": "loss {:.3f}",
        "train/top1": "top-1 {:.1%}",
        "speed/images_per_second": "{:,.0f} images/s",
        "data/wait_share": "data wait {:.0%}",
    }
    return [text.format(metrics[key]) for key, text in texts.items() if key in metrics]


class View:
    """Base of progress views: a display on a terminal, lines elsewhere; used as a context manager."""

    def __init__(self, display: Progress | Live) -> None:
        self.display, self.is_live, self.last_line = display, console.is_terminal, 0.0

    def __enter__(self) -> Self:
        if self.is_live:
            self.display.start()
            console.push_render_hook(ResizeHook(console))
        return self

    def __exit__(self, *error: object) -> None:
        if self.is_live:
            self.display.refresh()
            console.pop_render_hook()  # before the display's own, which its stop() pops
            self.display.stop()

    def line_is_due(self) -> bool:
        """Return whether the last line is at least PLAIN_LINE_SECONDS old; if so, count from now."""
        now = time.monotonic()
        if now - self.last_line < PLAIN_LINE_SECONDS:
            return False
        self.last_line = now
        return True


class BarView(View):
    """Base of views with one bar. description: the first text before the bar."""

    def __init__(self, description: str) -> None:
        self.bar = OneLineProgress(console=console)
        self.task = self.bar.add_task(description, total=None)
        super().__init__(self.bar)


class RunView(BarView):
    """Watches one run: call it with (state, messages) whenever they arrive."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: starting")
        self.name = name
        self.last_state: dict[str, Any] = {}

    def wait_for(self, what: str) -> None:
        """Show what the run waits for before its workers report."""
        if self.is_live:
            self.bar.update(self.task, description=f"{self.name}: waiting for {what}")

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        for message in messages:
            say(f"{self.name}: {message}")
        if not state or state == self.last_state:
            return
        self.last_state = state
        if self.is_live:
            self.bar.update(
                self.task,
                description=f"{self.name}: {state['phase']}",
                completed=state.get("step", 0),
                total=state.get("total_steps"),
                parts=progress_parts(state),
            )
        elif "step" in state and (state["step"] == state["total_steps"] or self.line_is_due()):
            say(f"{self.name}: step {state['step']}/{state['total_steps']}  {'  '.join(progress_parts(state))}")


def table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a table whose first column is text, of one line, and whose others are numbers, which may take two."""
    made = Table(title=visible(title), title_justify="left")
    for number, column in enumerate(columns):
        made.add_column(visible(column), justify="left" if number == 0 else "right", no_wrap=True)
    for text, *numbers in rows:
        made.add_row(visible(text), *(visible(number, in_lines=True) for number in numbers))
    return made


def percent(value: float | None) -> str:
    """Return a fraction as a percentage; '-' for None."""
    return "-" if value is None else f"{value:.2%}"


def duration(seconds: float) -> str:
    """Return seconds in the unit that reads best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return "under 1 s" if 0 < seconds < 0.5 else f"{seconds:.0f} s"


def part_of(teacher: float, student: float) -> str:
    """Return the student's size relative to the teacher's: '1/4.0', or '1.5 times' for a larger student."""
    return f"1/{teacher / student:.1f}" if student <= teacher else f"{student / teacher:.1f} times"

"""A one-line progress bar, which shows what matters most in whatever width the terminal has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

GAP = 2
BAR_WIDTHS = (10, 24)  # the narrowest worth showing, and the widest
DESCRIPTION_SHARE = 0.4  # of the line: a description is cut to this where the texts after it need the rest


class OneLineProgress(Progress):
    """A bar whose tasks carry `parts`: texts next to it, the most important one first.

    They may also carry `seconds_left`, if they know it better than rich does.
    """

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return one line per task, in place of rich's table of columns."""
        return (TaskLine(task) for task in self.tasks if task.visible)


class TaskLine:
    """The line of one task: its description, a bar, and as many of its texts as there is room for.

    In order of importance: steps done, time left, the task's own `parts`, time taken; the bar takes what is left.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width - 1  # a terminal may wrap a line of exactly its width
        description, texts = fitted(self.task.description, self.texts(), width)
        left = width - sum(cell_len(text) + GAP for text in (description, *texts))
        line = Table.grid(padding=(0, GAP, 0, 0))
        cells: list[RenderableType] = [Text(description, no_wrap=True)]
        if left >= BAR_WIDTHS[0]:
            cells.append(self.bar(min(left, BAR_WIDTHS[1])))
        line.add_row(*cells, *(Text(text, no_wrap=True) for text in texts))
        yield line

    def texts(self) -> list[str]:
        """Return the texts next to the bar, the most important one first."""
        task = self.task
        counted = [f"{task.completed:,.0f}/{task.total:,.0f}"] if task.total is not None else []
        left = task.fields.get("seconds_left", task.time_remaining)
        timed = [f"eta {clock(left)}"] if task.total is not None else []
        return [*counted, *timed, *task.fields.get("parts", ()), f"{clock(task.elapsed)} so far"]

    def bar(self, width: int) -> ProgressBar:
        """Return the bar itself, which pulses while the end is unknown."""
        task = self.task
        return ProgressBar(total=task.total, completed=task.completed, width=width, pulse=not task.started)


def fitted(description: str, texts: Sequence[str], width: int) -> tuple[str, list[str]]:
    """Return the description and as many of the first texts as fit after it in a line of `width` cells.

    A long description is cut where that makes room for a text.
    """
    longest = max(int(width * DESCRIPTION_SHARE), width - sum(cell_len(text) + GAP for text in texts))
    if cell_len(description) > longest:
        description = set_cell_size(description, longest - 1) + "…"
    left, shown = width - cell_len(description), []
    for text in texts:
        left -= cell_len(text) + GAP
        if left < 0:
            break
        shown.append(text)
    return description, shown


def clock(seconds: float | None) -> str:
    """Return seconds as hours, minutes and seconds; dashes for None."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""A live display on a terminal that is made narrower while it runs.

Terminals then rewrap what they show: a line of 99 cells takes two rows at 60 columns, and rich, which moves up by as
many rows as it drew lines, would leave the first of the two behind, at every change of the width.
"""

from __future__ import annotations

import os

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.live_render import LiveRender
from rich.segment import ControlType, Segment


class ResizeHook(RenderHook):
    """Erases the rows that the last drawing takes beyond its lines; pushed after a display's own hook."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.drawn: list[int] = []  # cells of each line of the last drawing

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Return what is to be printed, preceded by the erasing that a narrower terminal requires."""
        display = renderables[-1] if renderables else None
        if not isinstance(display, LiveRender):
            return renderables
        width = self.console.width
        surplus = sum(rows_of(cells, width) - 1 for cells in self.drawn) if wraps_anew() else 0
        lines = self.console.render_lines(display, self.console.options, pad=False)
        self.drawn = [Segment.get_line_length(line) for line in lines]
        erasing = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * surplus
        return [Control(*erasing), *renderables] if surplus else renderables


def rows_of(cells: int, width: int) -> int:
    """Return the number of rows that a line of `cells` cells takes."""
    return max(1, -(-cells // width))


def wraps_anew() -> bool:
    """Return whether the terminal rewraps its lines when its width changes: all do except xterm and Linux's own."""
    return os.environ.get("TERM") != "linux" and "XTERM_VERSION" not in os.environ

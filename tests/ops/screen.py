"""A small terminal: what it shows of the bytes that a program writes, and how it wraps lines anew on a resize.

As terminals in use do (VTE, kitty, Windows Terminal, tmux): a line that was broken for want of columns is one line, and
is broken anew when the width changes; the cursor stays in its cell. Of control sequences it knows those that rich
uses for a live display, and fails on any other.
"""

from __future__ import annotations

import re

TOKEN = re.compile(
    r"\x1b\[(?P<number>[0-9;?]*)(?P<kind>[A-Za-z])|\x1b\](?P<title>[^\x07]*)\x07|(?P<other>\x1b.|[\r\n]|[^\x1b\r\n]+)",
    re.DOTALL,
)
IGNORED = "mhl"  # colours, and whether the cursor is shown


class Screen:
    """Rows of cells. `wraps[n]`: whether row n goes on in row n + 1."""

    def __init__(self, width: int) -> None:
        self.width, self.x, self.y = width, 0, 0
        self.rows: list[list[str]] = [[]]
        self.wraps: list[bool] = [False]

    def feed(self, text: str) -> None:
        """Take in what a program has written."""
        for token in TOKEN.finditer(text):
            if token["kind"]:
                self._control(token["kind"], token["number"])
            elif token["title"] is None:
                for letter in token["other"]:
                    self._put(letter)

    def _control(self, kind: str, number: str) -> None:
        if kind == "A":
            self.y = max(0, self.y - int(number or 1))
        elif kind == "K" and number == "2":
            self.rows[self.y] = []
            self.wraps[self.y] = False
        elif kind not in IGNORED:
            raise AssertionError(f"an unknown control sequence: {number}{kind}")

    def _put(self, letter: str) -> None:
        if letter == "\r":
            self.x = 0
        elif letter == "\n":
            self._next_row()
            self.x = 0
        else:
            if self.x == self.width:
                self.wraps[self.y] = True
                self._next_row()
                self.x = 0
            row = self.rows[self.y]
            row += [" "] * (self.x + 1 - len(row))
            row[self.x] = letter
            self.x += 1

    def _next_row(self) -> None:
        self.y += 1
        if self.y == len(self.rows):
            self.rows.append([])
            self.wraps.append(False)

    def resize(self, width: int) -> None:
        """Break every line anew; the cursor stays in its cell."""
        lines: list[list[str]] = [[]]
        of_cursor, offset = 0, 0  # its line, and its place in that
        for number, (row, wraps) in enumerate(zip(self.rows, self.wraps, strict=True)):
            if number == self.y:
                of_cursor, offset = len(lines) - 1, len(lines[-1]) + self.x
            lines[-1] += row + [" "] * (self.width - len(row) if wraps else 0)
            if not wraps:
                lines.append([])
        self.rows, self.wraps, self.width = [], [], width
        for number, line in enumerate(lines[:-1]):
            if number == of_cursor:
                is_behind_the_edge = 0 < offset == len(line) and offset % width == 0
                down = offset // width - is_behind_the_edge
                self.y, self.x = len(self.rows) + down, offset - down * width
            starts = range(0, max(len(line), 1), width)
            self.rows += [line[start : start + width] for start in starts]
            self.wraps += [start != starts[-1] for start in starts]

    def lines(self) -> list[str]:
        """Return the rows as text, without blanks at their ends and without empty rows at the end."""
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n").split("\n")

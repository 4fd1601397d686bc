"""The live bar on a terminal whose window is pulled while it runs: a program on a pty, and a model of what is seen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ops.screen import Screen

ROOT = Path(__file__).parents[2]
# Draws once for every line that it reads: alone, or below a message. Its title says which drawing is on the screen.
PROGRAM = """
import os, sys
from ops.console import RunView, console

view = RunView("resnet34-resnet18")
view.display.live.auto_refresh = False
with view:
    for number, words in enumerate(sys.stdin, start=1):
        state = {"phase": "training", "step": number, "total_steps": 372, "train/loss": 2.25, "train/top1": 0.153,
                 "speed/images_per_second": 1185.2, "data/wait_share": 0.46}
        view(state, [words.strip()] if words.strip() else [])
        view.display.refresh()
        console.file.write(f"\\x1b]0;{number}\\x07")
        console.file.flush()
"""
WIDTHS = (100, 60, 47, 80, 120, 60, 100)


class Terminal:
    """A program on a pseudo-terminal, and the screen that shows what it writes."""

    def __init__(self, program: str, width: int, **environment: str) -> None:
        self.screen, self.drawings = Screen(width), 0
        self.parent, child = pty.openpty()
        self._set(width)
        variables = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "XTERM_VERSION")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=child,
            stderr=child,
            cwd=ROOT,
            env={**variables, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            text=True,
        )
        os.close(child)

    def resize(self, width: int) -> None:
        """Pull the window to a width; the kernel tells the program."""
        self._set(width)
        self.screen.resize(width)

    def _set(self, width: int) -> None:
        fcntl.ioctl(self.parent, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def draw(self, message: str = "") -> list[str]:
        """Have the program draw once; return the rows of the screen."""
        assert self.process.stdin is not None
        self.process.stdin.write(message + "\n")
        self.process.stdin.flush()
        self.drawings += 1
        written = b""
        while not written.endswith(f"\x1b]0;{self.drawings}\x07".encode()):
            ready, _, _ = select.select([self.parent], [], [], 120)
            assert ready, f"nothing more was drawn after {written!r}"
            written += os.read(self.parent, 65536)
        self.screen.feed(written.decode())
        return self.screen.lines()

    def end(self) -> list[str]:
        """Have the program end; return the rows of the screen."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        written = b""
        try:
            while part := os.read(self.parent, 65536):
                written += part
        except OSError:  # the other side is closed, and everything is read
            pass
        assert self.process.wait(60) == 0
        self.screen.feed(written.decode())
        return self.screen.lines()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal(PROGRAM, 100)
    yield made
    made.process.kill()
    made.process.wait()
    os.close(made.parent)


def test_a_resize_leaves_no_litter(terminal: Terminal) -> None:
    said: list[str] = []
    for number, width in enumerate(WIDTHS):
        terminal.resize(width)
        message = f"validation {number}"
        for one in ("", message):  # drawn anew, and pushed down by a message
            said += [f"resnet34-resnet18: {one}"] if one else []
            *above, bar = terminal.draw(one)
            assert above == said
            assert f"{terminal.drawings}/372" in bar
            assert len(bar) < width
    terminal.resize(60)
    *above, bar = terminal.end()
    assert above == said
    assert f"{terminal.drawings}/372" in bar


def test_what_is_left_without_it(terminal: Terminal) -> None:
    """The cause, so that the test above can fail: rich goes up by the lines that it drew, not by their rows."""
    terminal.process.kill()
    plain = Terminal(PROGRAM.replace("with view:", "with view.display:"), 100)
    try:
        assert len(plain.draw()) == 1
        plain.resize(60)
        litter, bar = plain.draw()
        assert "1/372" in litter
        assert "2/372" in bar
    finally:
        plain.process.kill()
        plain.process.wait()
        os.close(plain.parent)


def test_the_model_of_a_terminal() -> None:
    screen = Screen(10)
    screen.feed("one\r\nabcdefghijklmno")
    assert screen.lines() == ["one", "abcdefghij", "klmno"]
    screen.resize(6)
    assert screen.lines() == ["one", "abcdef", "ghijkl", "mno"]
    assert (screen.y, screen.x) == (3, 3)
    screen.resize(20)
    assert screen.lines() == ["one", "abcdefghijklmno"]
    screen.feed("\r\x1b[2K\x1b[1A\x1b[2Ktwo")
    assert screen.lines() == ["two"]

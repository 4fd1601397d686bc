"""The end of a command's process."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def run_and_leave(command: Callable[[], int]) -> None:
    """Run a command and end the process with its status, without freeing every object first.

    At exit Python takes torch's modules apart, which costs every command 1.2 s of CPU. When `_leave` runs, threads have
    ended and all other exit handlers have run: the handler registered first runs last.
    """
    status: list[int] = []
    atexit.register(_leave, status)
    status.append(command())
    sys.exit(status[0])


def _leave(status: list[int]) -> None:
    """End the process at once; after an exception in the command, leave that to Python."""
    if not status:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader of a pipe is gone, or the stream is closed
            stream.flush()
    os._exit(status[0])

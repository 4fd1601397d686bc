"""The end of a command's process."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress


def run_and_leave(command: Callable[[], int]) -> None:
    """Run a command and end the process with its status, without freeing every object first.

    Python takes torch's modules apart at its end, 1.2 s of CPU of every command. Threads have ended by then, and all
    that is registered to run at exit has run: what is registered first comes last.
    """
    status: list[int] = []
    atexit.register(_leave, status)
    status.append(command())
    sys.exit(status[0])


def _leave(status: list[int]) -> None:
    """End the process; a command that was ended by an exception of its own ends as Python does."""
    if not status:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader of a pipe is gone, or the stream is closed
            stream.flush()
    os._exit(status[0])

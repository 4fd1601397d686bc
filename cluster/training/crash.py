"""The signal that a worker dies of, written into the run's folder by Python's own fault handler.

It writes which signal it was, and where each thread was; `cluster.nodes.errors` reads that.
"""

from __future__ import annotations

import faulthandler
from pathlib import Path
from typing import TextIO

_open: list[TextIO] = []  # as long as the process lives: the handler keeps the file's descriptor


def record_crashes(path: Path) -> None:
    """Have this process write into the file what it dies of, if that is a signal such as a segmentation fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _open.append(path.open("w"))
    faulthandler.enable(_open[-1])

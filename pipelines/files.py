"""Files that are under their name whole or not at all, whatever is killed when."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4


def write_whole(path: Path, content: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Writes content (or what content writes) beside its place, syncs it to the disk and renames it.

    A writer that is killed leaves a file named *.tmp, which nobody reads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    with temporary.open("wb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

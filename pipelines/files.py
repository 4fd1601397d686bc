"""Files that are under their name whole or not at all, whatever is killed when, and refusals that name the file."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from kdcore.errors import Refused, RunFailed

FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content: bytes | memoryview | Callable[[BinaryIO], object]) -> None:
    """Write content (or what content writes) beside its place, sync it to the disk and rename it.

    A writer that is killed leaves a file named *.tmp, which nobody reads. RunFailed where the disk is full.
    """
    make_folder(path.parent, path.name)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in FULL:
            raise
        raise RunFailed(
            f"{path} cannot be written: {error.strerror}; free some space, and run the same command again"
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """Write a value as strict JSON, whole or not at all; NaN and infinities, which JSON has not, become null."""
    write_whole(path, json.dumps(finite_or_null(content), indent=1, allow_nan=False).encode())


def finite_or_null(content: Any) -> Any:
    """Return the value with None in the place of every number in it that is not finite."""
    if isinstance(content, dict):
        return {key: finite_or_null(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_null(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def read_json(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file.

    Refused, with the remedy, where it is absent, cut off, or something else.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise Refused(f"{path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:  # a JSONDecodeError or a UnicodeDecodeError
        raise Refused(f"{path} is not whole JSON ({error}); {remedy}") from error


def make_folder(path: Path, setting: str) -> Path:
    """Return the folder, made with its parents where it is not there.

    Refused, naming the setting, where that cannot be.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(
            f"{setting}: the folder {path} cannot be made ({error.strerror}); give a place that can be written to"
        ) from error
    return path

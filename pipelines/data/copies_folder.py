"""The folder of a node's copies: how much each of them may keep, and room made by those that no process uses.

It may hold other things as well, on a scratch disk for example: only what `pipelines.data.copies` has made is
looked into or removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
from pathlib import Path

IN_USE, PRESENT, SIZE = "in-use", "present", "size"  # the files that identify a copy; their content: see `copies`
SIZES = struct.Struct("<qq")  # content of the last: (bytes that may be kept, bytes that are)
_NAME = re.compile(r"[0-9a-f]{32}")
_REMOVED = ".removed"  # ends the name of a copy that is being removed


def make_room(folder: Path, ours: Path, total_bytes: int, limit: int | None) -> int:
    """Return the bytes that a copy may keep; others that no process uses are removed if it needs their room.

    So is the copy itself, if it keeps more than it may. limit: bytes of all copies; None: half of what is free.
    """
    for path in folder.glob(f"*{_REMOVED}"):  # by a process that was killed meanwhile
        if _NAME.fullmatch(path.name.removesuffix(_REMOVED)) and not path.is_symlink():
            shutil.rmtree(path)
    sizes = {path: _sizes_of(path) for path in folder.iterdir() if _is_copy(path)}
    if limit is None:
        limit = (shutil.disk_usage(folder).free + sum(kept for _, kept in sizes.values())) // 2
    _, ours_kept = sizes.pop(ours, (0, 0))
    taken = {path: sizes[path][0] for path in sorted(sizes, key=lambda path: path.stat().st_mtime)}
    for path in list(taken):
        if limit - sum(taken.values()) < total_bytes and _remove_unused(path):
            del taken[path]
    allowed = max(0, min(total_bytes, limit - sum(taken.values())))
    if ours_kept > allowed:
        _remove_unused(ours)
    return allowed


def hold(path: Path, kind: int, flags: int = os.O_CREAT) -> int:
    """Return a descriptor that holds a lock for as long as it is open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


def _is_copy(path: Path) -> bool:
    """Return whether a folder is a copy, by its name and by the files in it; a link is not one."""
    if not _NAME.fullmatch(path.name) or path.is_symlink():
        return False
    return all((path / name).is_file() for name in (IN_USE, PRESENT, SIZE))


def _sizes_of(copy: Path) -> tuple[int, int]:
    """Return (bytes that a copy may keep, bytes that it keeps)."""
    try:
        allowed, kept = SIZES.unpack((copy / SIZE).read_bytes())
    except struct.error:
        return 0, 0
    return allowed, kept


def _remove_unused(copy: Path) -> bool:
    """Remove a copy, unless a process uses it; return whether it is gone.

    Renamed first, since what a killed process leaves of it is not a copy any more.
    """
    try:
        descriptor = hold(copy / IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB, flags=0)
    except BlockingIOError:
        return False
    shutil.rmtree(copy.rename(copy.with_name(copy.name + _REMOVED)))
    os.close(descriptor)
    return True

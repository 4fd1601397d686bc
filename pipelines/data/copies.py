"""A node's copy of images from an object store: it grows while they are read, and all processes of the node share it.

    <dir>/<digest>/00000     a sparse file like the store's first file, with the extents that were read
    <dir>/<digest>/present   a byte a sample: whether its extent is there
    <dir>/<digest>/size      the bytes that may be kept, and those that are

What is once kept stays: epochs are read in random order, so that any part of the data is as good as another. A sample's
checksum is compared when it is read, for a machine that lost power may have kept the byte that says it is there.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from pipelines.files import make_folder

_SIZE = struct.Struct("<qq")  # (bytes that may be kept, bytes that are)


@dataclass(frozen=True)
class CopyPolicy:
    """Where a node keeps its copies, and how much of them.

    folder: by default in the machine's temporary folder; num_bytes: of all copies in it together; by default half of
    what is free there when the first copy is begun.
    """

    folder: str | None = None
    num_bytes: int | None = None

    @property
    def path(self) -> Path:
        """The folder of the copies."""
        return Path(self.folder or Path(tempfile.gettempdir()) / "stillhouse-images")


@dataclass(frozen=True)
class Extent:
    """Where a sample lies. row: of the whole index; file: number of the store's file; crc32: of the content."""

    row: int
    file: int
    offset: int
    num_bytes: int
    crc32: int


class LocalCopy:
    """The copy of one source on this node; its methods may be called from several threads and processes.

    key: what the data are; total_bytes, num_rows: of the whole source.
    """

    def __init__(self, policy: CopyPolicy, key: str, total_bytes: int, num_rows: int) -> None:
        self.folder = policy.path / sha256(key.encode()).hexdigest()[:32]
        make_folder(policy.path, "data.copies_dir")
        with _locked(policy.path / "lock"):
            allowed = _make_room(policy, self.folder, total_bytes)
            if _size_of(self.folder)[1] > allowed:
                _remove_unused(self.folder)
            self.folder.mkdir(exist_ok=True)
            self._in_use = _hold(self.folder / "in-use", fcntl.LOCK_SH)
            self._present = _map(self.folder / "present", num_rows)
            self._size = _map(self.folder / "size", _SIZE.size)
            with _locked(self.folder / "in-size"):
                self._size[:] = _SIZE.pack(allowed, self.kept_bytes)
        self._files: dict[int, int] = {}  # {number of the store's file: descriptor}

    def read(self, extent: Extent) -> bytes | None:
        """Return a sample that is kept; None where it is not."""
        if not self._present[extent.row]:
            return None
        content = os.pread(self._file(extent.file), extent.num_bytes, extent.offset)
        return content if zlib.crc32(content) == extent.crc32 else None

    def keep(self, extent: Extent, content: bytes) -> None:
        """Keep a sample, where there is room for it."""
        if self._present[extent.row] or not self._take(len(content)):
            return
        os.pwrite(self._file(extent.file), content, extent.offset)
        self._present[extent.row] = 1  # after its bytes

    @property
    def kept_bytes(self) -> int:
        """How many bytes are kept."""
        return int(_SIZE.unpack(self._size[:])[1])

    def _take(self, num_bytes: int) -> bool:
        """Return whether there is room for more bytes, which then count as kept."""
        with _locked(self.folder / "in-size"):
            allowed, kept = _SIZE.unpack(self._size[:])
            if kept + num_bytes > allowed:
                return False
            self._size[:] = _SIZE.pack(allowed, kept + num_bytes)
            return True

    def _file(self, number: int) -> int:
        if number not in self._files:
            descriptor = os.open(self.folder / f"{number:05d}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if self._files.setdefault(number, descriptor) != descriptor:
                os.close(descriptor)  # another thread was first
        return self._files[number]

    def __del__(self) -> None:
        for descriptor in [*getattr(self, "_files", {}).values(), getattr(self, "_in_use", None)]:
            if descriptor is not None:
                os.close(descriptor)


def _make_room(policy: CopyPolicy, ours: Path, total_bytes: int) -> int:
    """Return how many bytes a copy may keep; others that no process uses are removed where it needs their room."""
    folders = [path for path in policy.path.iterdir() if path.is_dir() and path != ours]
    taken = {path: _size_of(path)[0] for path in sorted(folders, key=lambda path: path.stat().st_mtime)}
    limit = policy.num_bytes
    if limit is None:
        kept = sum(_size_of(path)[1] for path in [ours, *folders])
        limit = (shutil.disk_usage(policy.path).free + kept) // 2
    for path in list(taken):
        if limit - sum(taken.values()) < total_bytes and _remove_unused(path):
            del taken[path]
    return max(0, min(total_bytes, limit - sum(taken.values())))


def _size_of(folder: Path) -> tuple[int, int]:
    """Return (bytes that a copy may keep, bytes that it keeps)."""
    try:
        allowed, kept = _SIZE.unpack((folder / "size").read_bytes())
    except (FileNotFoundError, struct.error):
        return 0, 0
    return allowed, kept


def _remove_unused(folder: Path) -> bool:
    """Remove a copy, unless a process uses it; return whether it is gone."""
    try:
        descriptor = _hold(folder / "in-use", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    shutil.rmtree(folder)
    os.close(descriptor)
    return True


def _map(path: Path, num_bytes: int) -> mmap.mmap:
    """Return a file's bytes, shared with every process that maps it; made, of zeros, where it is not there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size < num_bytes:
            os.ftruncate(descriptor, num_bytes)
        return mmap.mmap(descriptor, max(1, num_bytes))
    finally:
        os.close(descriptor)


def _hold(path: Path, kind: int) -> int:
    """Return a descriptor that holds a lock for as long as it is open."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock against threads and processes while the body runs."""
    descriptor = _hold(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)

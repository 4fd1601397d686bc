"""A node's copy of images from an object store: it grows while they are read, and all processes of the node share it.

    <dir>/<digest>/00000-0   a sparse file like the first GiB of the store's first file, with the extents that were read
    <dir>/<digest>/present   a byte per sample: whether its extent is there
    <dir>/<digest>/size      the bytes that may be kept, and those that are
    <dir>/<digest>/pieces    for each GiB of each file: the bytes that are kept, and when the last of them were

What is kept stays: epochs are read in random order, so that any part of the data is as good as another. Where they
are read window by window, the piece that was filled longest ago makes room for the next. A sample's checksum is
compared when it is read: a machine that lost power may have kept the byte that says it is there, and a piece may just
have been removed. A copy only helps: where the disk is full, samples are fetched as if there were none.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.copies_folder import IN_USE, PRESENT, SIZE, SIZES, hold, make_room
from pipelines.data.disk import OpenFile, OpenFiles
from pipelines.files import FULL, locked, make_folder, not_written, own_temporary_folder

PIECE_BYTES = 2**30
_FETCHING = 256  # locks, for any number of blocks
_Offsets = TypeVar("_Offsets", int, NDArray[np.int64])

logger = logging.getLogger("stillhouse")


def piece_of(offset: _Offsets) -> _Offsets:
    """Return the piece of its file that an offset, or each of several, lies in."""
    return offset // PIECE_BYTES


@dataclass(frozen=True)
class CopyPolicy:
    """Where a node keeps its copies, and how much of them.

    folder: by default in the machine's temporary folder; num_bytes: of all copies in it together; by default half of
    what is free there when the first copy is begun; window_bytes: of the largest window where images are read window by
    window: whole blocks are then fetched, and old ones make room for new.
    """

    folder: str | None = None
    num_bytes: int | None = None
    window_bytes: int | None = None

    @property
    def path(self) -> Path:
        """The folder of the copies."""
        return Path(self.folder) if self.folder else own_temporary_folder("stillhouse-images")


@dataclass(frozen=True)
class Extent:
    """Where a sample lies. row: of the whole index; file: number of the store's file; crc32: of the content."""

    row: int
    file: int
    offset: int
    num_bytes: int
    crc32: int

    def is_of(self, content: bytes) -> bool:
        """Return whether this is the content that was indexed."""
        return len(content) == self.num_bytes and zlib.crc32(content) == self.crc32


class LocalCopy:
    """The copy of one source on this node; its methods may be called from several threads and processes.

    key: what the data are; file_bytes: the size of each file of the source; num_rows: of the whole source. Refused
    where there is no room for two windows; see `copy_of` for a disk that is full.
    """

    def __init__(self, policy: CopyPolicy, key: str, file_bytes: Sequence[int], num_rows: int) -> None:
        self.folder = policy.path / sha256(key.encode()).hexdigest()[:32]
        self._makes_room = policy.window_bytes is not None
        self._keeps = True
        self._is_full = False
        counts = [piece_of(num_bytes) + 1 for num_bytes in file_bytes]
        self._first_pieces = np.cumsum([0, *counts])
        make_folder(policy.path, "data.copies_dir")
        with locked(policy.path / "lock"):
            allowed = make_room(policy.path, self.folder, sum(file_bytes), policy.num_bytes)
            self.folder.mkdir(exist_ok=True)
            self._in_use = hold(self.folder / IN_USE, fcntl.LOCK_SH)
            self._present = _map(self.folder / PRESENT, num_rows)
            self._size = _map(self.folder / SIZE, SIZES.size)
            pieces = np.frombuffer(_map(self.folder / "pieces", 16 * sum(counts)), dtype=np.int64)
            self._pieces = pieces.reshape(-1, 2)  # (bytes that are kept, time in ns)
            with locked(self.folder / "in-size"):
                self._size[:] = SIZES.pack(allowed, self.kept_bytes)
        self._files = OpenFiles()  # by (number of the store's file, piece)
        _check_room(policy, allowed, sum(file_bytes))

    def read(self, extent: Extent) -> bytes | None:
        """Return a sample that is kept; None where it is not."""
        if not self._present[extent.row]:
            return None
        piece = piece_of(extent.offset)
        try:
            file = self._file(extent.file, piece)
            content = os.pread(file.descriptor, extent.num_bytes, extent.offset - piece * PIECE_BYTES)
        except OSError:  # the store has it as well
            return None
        if extent.is_of(content):
            return content
        self._present[extent.row] = 0
        return None

    def keep(self, extent: Extent, content: bytes) -> None:
        """Keep a sample, where there is room for it. A failure is logged once: nothing depends on it.

        Other content than was indexed is not kept: each read would find it wrong, and fetch and count it again.
        """
        if not self._keeps or not extent.is_of(content):
            return
        try:
            self._write(extent, content)
        except OSError as error:
            # Where old pieces make room for new ones, there may be some later.
            self._keeps = self._makes_room
            if not self._is_full:
                self._is_full = True
                problem = not_written(self.folder, error)
                logger.warning("data.copies_dir: %s; images are fetched from the store", problem)

    def _write(self, extent: Extent, content: bytes) -> None:
        """Write a sample, and only then count it; other writers wait, so that no bytes are counted twice."""
        piece = piece_of(extent.offset)
        number = int(self._first_pieces[extent.file]) + piece
        with locked(self.folder / "in-size"):
            if self._present[extent.row] or not self._has_room(len(content), number):
                return
            file = self._file(extent.file, piece)
            if os.pwrite(file.descriptor, content, extent.offset - piece * PIECE_BYTES) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._count(number, int(self._pieces[number, 0]) + len(content))
            self._present[extent.row] = 1  # after its bytes

    @contextmanager
    def fetching(self, file: int, block: int) -> Iterator[None]:
        """Let no other thread or process of this node fetch a block of a file while the body runs."""
        with locked(self.folder / f"fetching-{hash((file, block)) % _FETCHING:03d}"):
            yield

    @property
    def kept_bytes(self) -> int:
        """The number of bytes kept."""
        return int(SIZES.unpack(self._size[:])[1])

    def _has_room(self, num_bytes: int, number: int) -> bool:
        """Return whether there is room for more bytes in a piece; other pieces are removed for it where allowed."""
        while self.kept_bytes + num_bytes > SIZES.unpack(self._size[:])[0]:
            if not self._makes_room or not self._remove_oldest(number):
                return False
        return True

    def _remove_oldest(self, other: int) -> bool:
        """Remove the piece that was filled longest ago, except `other`; return whether there was any.

        A reader of it at this moment finds that the checksum is wrong, and fetches again.
        """
        candidates = np.flatnonzero(self._pieces[:, 0])
        candidates = candidates[candidates != other]
        if not candidates.size:
            return False
        oldest = int(candidates[np.argmin(self._pieces[candidates, 1])])
        file = int(np.searchsorted(self._first_pieces, oldest, side="right")) - 1
        os.truncate(self.folder / _piece_name(file, oldest - int(self._first_pieces[file])), 0)
        self._count(oldest, 0)
        return True

    def _count(self, number: int, num_bytes: int) -> None:
        """Note the number of bytes that a piece keeps from now on."""
        allowed, kept = SIZES.unpack(self._size[:])
        self._size[:] = SIZES.pack(allowed, kept + num_bytes - int(self._pieces[number, 0]))
        self._pieces[number] = num_bytes, time.time_ns() if num_bytes else 0

    def _file(self, number: int, piece: int) -> OpenFile:
        if (found := self._files.get((number, piece))) is not None:
            return found
        path = str(self.folder / _piece_name(number, piece))
        return self._files.open((number, piece), lambda: OpenFile(path, os.O_RDWR | os.O_CREAT))

    def __del__(self) -> None:
        if (descriptor := getattr(self, "_in_use", None)) is not None:
            os.close(descriptor)


def copy_of(policy: CopyPolicy, key: str, file_bytes: Sequence[int], num_rows: int) -> LocalCopy | None:
    """Return this node's copy of a source; None, with a warning, where its disk is full.

    Refused where it cannot be written to, and where it is full and windows are to be read, which need a copy.
    """
    try:
        return LocalCopy(policy, key, file_bytes, num_rows)
    except OSError as error:
        problem = f"data.copies_dir: {not_written(policy.path, error)}"
        if error.errno not in FULL or policy.window_bytes is not None:
            raise Refused(problem) from error
        logger.warning("%s; images are fetched from the store every time", problem)
        return None


def _piece_name(file: int, piece: int) -> str:
    return f"{file:05d}-{piece}"


def _check_room(policy: CopyPolicy, allowed: int, total_bytes: int) -> None:
    """Refuse less room than for two windows: a block would be removed before all of it is read."""
    needed = min(total_bytes, 2 * (policy.window_bytes or 0))
    if allowed < needed:
        raise Refused(
            f"data.window_shards: two windows take {needed / 2**20:,.0f} MiB, but {policy.path} may keep "
            f"{allowed / 2**20:,.0f} MiB of these images; raise data.copies_bytes, name a larger disk as "
            "data.copies_dir, or take a smaller window"
        )


def _map(path: Path, num_bytes: int) -> mmap.mmap:
    """Return a file's bytes, shared with every process that maps it; created, of zeros, if it is missing.

    Allocated on the disk to its end: writing to a page of a mapping that the disk has no room for ends the process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        status = os.fstat(descriptor)
        if num_bytes and min(status.st_size, status.st_blocks * 512) < num_bytes:
            os.posix_fallocate(descriptor, 0, num_bytes)
        return mmap.mmap(descriptor, max(1, num_bytes))
    finally:
        os.close(descriptor)

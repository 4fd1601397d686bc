"""Where the encoded bytes of samples lie, and how they are fetched: any ids, in any order, from any thread.

Every container reduces to one of two: a file per image, or extents (file, offset, length) of larger files.

Files on a disk are read and not mapped: one that is cut off meanwhile gives a short read, which can be refused, whereas
touching a mapping would end the process. The copy out of the system's cache costs little in reused memory.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.buffers import Buffers
from pipelines.data.disk import OpenFile, OpenFiles, is_passing, patiently
from pipelines.data.images import Encoded, unreadable
from pipelines.data.store import changed
from pipelines.vectors import to_arrow, to_numpy


class Storage(Protocol):
    """The bytes of the samples of one source, by sample id; its methods may be called from several threads."""

    def read(self, ids: NDArray[np.int64]) -> Sequence[Encoded]:
        """Return the encoded images; Refused, with the name, where one is not what the index says.

        RunFailed where the disk or the store fails, which says nothing about the image.
        """

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the location of each sample, in words for an error."""

    @property
    def ahead(self) -> int:
        """The least number of images to read ahead of those in use."""


_KEPT = 64  # free buffers at most: the number of reads under way at once
_SPARE = 0.25  # so that the next images, a little larger together, fit as well


class _OnDisk:
    def __init__(self) -> None:
        self._buffers = Buffers(_KEPT, _SPARE)

    def _room(self, sizes: Sequence[int]) -> list[memoryview]:
        """Return memory of these sizes in bytes, all of one buffer."""
        whole = self._buffers.take(sum(sizes)).data
        return [whole[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]

    @property
    def ahead(self) -> int:
        """The number of images to read ahead: what the loader asks for is enough."""
        return 0


@dataclass(frozen=True)
class Written:
    """What tells a file that was written over. mtime_ns: when each was written; crc32: of its content."""

    mtime_ns: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    def is_other(self, sample_id: np.int64, content: memoryview, mtime_ns: int) -> bool:
        """Return whether a file is not the one that was indexed; one that was only touched, or copied, is."""
        return mtime_ns != self.mtime_ns[sample_id] and zlib.crc32(content) != self.crc32[sample_id]


class Files(_OnDisk):
    """One file per image. root: the folder; paths: of the files, relative to it; num_bytes: their sizes.

    written: what tells a file that was written over; None where only its size does.
    """

    def __init__(
        self, root: str, paths: pa.Array, num_bytes: NDArray[np.int64], written: Written | None = None
    ) -> None:
        super().__init__()
        self._root = root
        self._paths = paths
        self._num_bytes = num_bytes
        self._written = written

    def read(self, ids: NDArray[np.int64]) -> list[memoryview]:
        """Return the content of the files."""
        room = self._room((self._num_bytes[ids] + 1).tolist())  # one byte more tells that a file has grown
        contents = []
        for sample_id, path, into in zip(ids, self.names(ids), room, strict=True):
            content, mtime_ns = _read_file(path, into)
            if self._written is not None and self._written.is_other(sample_id, content, mtime_ns):
                raise changed(path)
            contents.append(content)
        return contents

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the paths of the files."""
        return [
            f"{self._root}/{path}" if path[0] != "/" else path for path in self._paths.take(to_arrow(ids)).to_pylist()
        ]


class Extents(_OnDisk):
    """Images that are parts of larger files on a local disk: tars, or shards of a pack.

    root: the folder; files: (name, bytes) of each when it was indexed; table: file, offset, num_bytes and path of every
    sample. A file is opened when it is first needed, and stays open: see `OpenFiles`.
    """

    def __init__(self, root: str, files: Sequence[tuple[str, int]], table: pa.Table) -> None:
        super().__init__()
        self._root = Path(root)
        self._files = files
        self._paths = table["path"].chunk(0)
        self._file = to_numpy(table["file"])
        self._offset = to_numpy(table["offset"])
        self._num_bytes = to_numpy(table["num_bytes"])
        self._open = OpenFiles()

    def read(self, ids: NDArray[np.int64]) -> list[memoryview]:
        """Return the extents. Refused where a file is not as long as it was; RunFailed where its disk fails."""
        room = self._room(self._num_bytes[ids].tolist())
        for file, offset, into in zip(self._file[ids].tolist(), self._offset[ids].tolist(), room, strict=True):
            try:
                opened = self._open.get(file) or self._opened(file)
                num_read = os.preadv(opened.descriptor, [into], offset)
            except OSError as error:
                num_read = self._read_again(file, into, offset, error)
            if num_read != len(into):
                raise _changed(str(self._root / self._files[file][0]))
        return room

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return <file>: <path of the image>."""
        paths = self._paths.take(to_arrow(ids)).to_pylist()
        files = self._file[ids].tolist()
        return [f"{self._root / self._files[file][0]}: {path}" for file, path in zip(files, paths, strict=True)]

    def _read_again(self, number: int, into: memoryview, offset: int, error: OSError) -> int:
        """Read an extent again after an error, its file reopened, as it may be stale; return the bytes read."""
        path = str(self._root / self._files[number][0])

        def read() -> int:
            self._open.forget(number)
            opened = self._opened(number)
            return os.preadv(opened.descriptor, [into], offset)

        try:
            if not is_passing(error):
                raise error
            return patiently(path, read)
        except OSError as lasting:
            raise _lost(path, lasting) from lasting

    def _opened(self, number: int) -> OpenFile:
        """Return a file, opened; Refused where it is not the one that was indexed."""
        name, num_bytes = self._files[number]

        def opened() -> OpenFile:
            file = OpenFile(str(self._root / name), os.O_RDONLY)
            if os.fstat(file.descriptor).st_size != num_bytes:
                raise _changed(str(self._root / name))
            return file

        return self._open.open(number, opened)


def _lost(path: str, error: OSError) -> Refused:
    return Refused(f"{path} cannot be read ({error.strerror}); put it back, or start again")


def _changed(path: str) -> Refused:
    return Refused(f"{path} was changed or cut off after it was indexed; restore it, or start again")


def _read_file(path: str, into: memoryview) -> tuple[memoryview, int]:
    """Return (the content of a file, read into room for one byte more; when it was written, in nanoseconds).

    Refused where it has another size.
    """
    num_bytes = len(into) - 1
    try:
        try:
            num_read, mtime_ns = _read_into(path, into)
        except OSError as error:
            if not is_passing(error):
                raise
            num_read, mtime_ns = patiently(path, lambda: _read_into(path, into))
    except OSError as error:
        raise unreadable(path, error) from error
    if num_read != num_bytes:
        raise Refused(
            f"{path} cannot be read as an image (its size is no longer the {num_bytes} bytes that were indexed); "
            "repair or remove it, then start again"
        )
    return into[:num_bytes], mtime_ns


def _read_into(path: str, into: memoryview) -> tuple[int, int]:
    """Read a file into `into`, as far as there is room; return (bytes read, when it was written in nanoseconds)."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        num_read = os.readv(file, [into])
        while 0 < num_read < len(into) - 1 and (more := os.readv(file, [into[num_read:]])):
            num_read += more
        return num_read, os.fstat(file).st_mtime_ns
    finally:
        os.close(file)

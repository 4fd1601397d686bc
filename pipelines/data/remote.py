"""Images in an object store, as parts of files or as files: reads of what is asked for, and a node's copy of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.data.copies import CopyPolicy, Extent, LocalCopy, copy_of
from pipelines.data.store import IMAGES_READ_AHEAD, StoreFiles, changed, requests
from pipelines.places import Place
from pipelines.vectors import to_arrow, to_numpy

_MAX_GAP = 64 * 1024  # bytes between two extents that one request fetches too
_MAX_SPAN = 8 * 2**20  # bytes of one request
_BLOCK_BYTES = 8 * 2**20  # fetched as one where images are read window by window
_COPY_VERSION = 2  # of a copy's layout on the disk


class RemoteExtents:
    """Images that are parts of files in an object store.

    place: the store's folder; files: (name, bytes) of each when it was indexed; table: row (of the whole index), file,
    offset, num_bytes, crc32 and path of every sample; policy: of the node's copy; None for no copy, and
    for no comparison with checksums, which are not known while an index is built.
    """

    def __init__(
        self, place: Place, files: Sequence[tuple[str, int]], table: pa.Table, policy: CopyPolicy | None
    ) -> None:
        self._place = place
        self._store = StoreFiles(place, keep_open=True)
        self._files = files
        self._paths = table["path"].chunk(0)
        names = ("row", "file", "offset", "num_bytes", "crc32")
        self._columns = [to_numpy(table[name]) for name in names]
        self._checks = policy is not None
        self._copy = None if policy is None else _copy_of(place, files, self._columns[0], policy)
        self._blocks = None if policy is None or policy.window_bytes is None else _Blocks(*self._columns[1:3])

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Return the extents, from the node's copy where they are kept there.

        Refused where a file or an image is not the one that was indexed; RunFailed where the store does not answer.
        """
        extents = self._extents(ids)
        contents = [self._copy.read(extent) if self._copy else None for extent in extents]
        fetching = missing = [number for number, content in enumerate(contents) if content is None]
        if self._blocks is not None:
            in_blocks = self._read_blocks([extents[number] for number in missing])
            for number in missing:
                contents[number] = in_blocks[extents[number].row]
            missing = []
        for span, fetched in requests().map(self._fetch, _spans([extents[number] for number in missing])):
            for number in span.numbers:
                extent = extents[missing[number]]
                contents[missing[number]] = content = span.part(fetched, extent)
                if self._copy:
                    self._copy.keep(extent, content)
        found = [content for content in contents if content is not None]
        for number in fetching if self._checks else ():
            if not extents[number].is_of(found[number]):
                raise changed(self.names(ids[number : number + 1])[0])
        return found

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return <file>: <path of the image>."""
        paths = self._paths.take(to_arrow(ids)).to_pylist()
        files = self._columns[1][ids].tolist()
        return [f"{self._place.name_of(self._files[file][0])}: {path}" for file, path in zip(files, paths, strict=True)]

    @property
    def ahead(self) -> int:
        """The number of images to read ahead."""
        return IMAGES_READ_AHEAD

    @property
    def kept_bytes(self) -> int:
        """The number of bytes that the node's copy holds."""
        return self._copy.kept_bytes if self._copy else 0

    def _read_blocks(self, extents: Sequence[Extent]) -> dict[int, bytes]:
        """Return {row: image} of images that were not kept, each fetched with its neighbours."""
        wanted: dict[tuple[int, int], list[Extent]] = {}
        for extent in extents:
            wanted.setdefault((extent.file, extent.offset // _BLOCK_BYTES), []).append(extent)
        found: dict[int, bytes] = {}
        for block in requests().map(self._read_block, wanted, wanted.values()):
            found |= block
        return found

    def _read_block(self, block: tuple[int, int], wanted: Sequence[Extent]) -> dict[int, bytes]:
        """Return {row: image} of images of a block; all of the block that is not kept yet is fetched and kept."""
        assert self._copy is not None, "blocks are for a copy"
        assert self._blocks is not None, "the caller has looked"
        with self._copy.fetching(*block):
            kept = {extent.row: self._copy.read(extent) for extent in wanted}
            found = {row: content for row, content in kept.items() if content is not None}
            if len(found) == len(kept):  # another has just fetched them
                return found
            whole = self._extents(self._blocks.samples(*block))
            kept |= {extent.row: self._copy.read(extent) for extent in whole if extent.row not in kept}
            missing = [extent for extent in whole if kept[extent.row] is None]
            stop = max(extent.offset + extent.num_bytes for extent in missing)
            span, fetched = self._fetch(_Span(block[0], min(extent.offset for extent in missing), stop, ()))
            for extent in missing:
                self._copy.keep(extent, span.part(fetched, extent))
            return found | {extent.row: span.part(fetched, extent) for extent in wanted if extent.row not in found}

    def _extents(self, ids: NDArray[np.int64]) -> list[Extent]:
        return [Extent(*values) for values in zip(*(column[ids].tolist() for column in self._columns), strict=True)]

    def _fetch(self, span: _Span) -> tuple[_Span, bytes]:
        """Return a span with its bytes."""
        name, num_bytes = self._files[span.file]
        return span, self._store.read(name, num_bytes, span.start, span.stop)


class RemoteFiles:
    """Images that are files of an object store, one request each.

    files: (name, bytes of all images) of the folder; table: row, path, num_bytes, crc32 and place_in_copy (where the
    image lies in the node's copy, which is one file) of every sample; the others as for `RemoteExtents`.
    """

    def __init__(
        self, place: Place, files: Sequence[tuple[str, int]], table: pa.Table, policy: CopyPolicy | None
    ) -> None:
        self._place = place
        self._store = StoreFiles(place, keep_open=False)
        self._paths = table["path"].chunk(0)
        names = ("row", "place_in_copy", "num_bytes", "crc32")
        self._row, self._offset, self._num_bytes, self._crc32 = (to_numpy(table[name]) for name in names)
        self._checks = policy is not None
        self._copy = None if policy is None else _copy_of(place, files, self._row, policy)

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Return the files, from the node's copy where they are kept there; Refused as by `RemoteExtents`."""
        paths = self._paths.take(to_arrow(ids)).to_pylist()
        return list(requests().map(self._read, ids.tolist(), paths))

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the URIs of the files."""
        return [self._place.name_of(path) for path in self._paths.take(to_arrow(ids)).to_pylist()]

    @property
    def ahead(self) -> int:
        """The number of images to read ahead."""
        return IMAGES_READ_AHEAD

    def _read(self, sample_id: int, path: str) -> bytes:
        num_bytes = int(self._num_bytes[sample_id])
        where = Extent(
            int(self._row[sample_id]), 0, int(self._offset[sample_id]), num_bytes, int(self._crc32[sample_id])
        )
        content = self._copy.read(where) if self._copy else None
        if content is None:
            content = self._store.read(path, num_bytes, 0, num_bytes)
            if self._checks and not where.is_of(content):
                raise changed(self._place.name_of(path))
            if self._copy:
                self._copy.keep(where, content)
        return content


def _copy_of(
    place: Place, files: Sequence[tuple[str, int]], rows: NDArray[np.int64], policy: CopyPolicy
) -> LocalCopy | None:
    """Return this node's copy of these files."""
    key = json.dumps([_COPY_VERSION, place.location, files])
    return copy_of(policy, key, [num_bytes for _, num_bytes in files], int(rows.max(initial=-1)) + 1)


class _Blocks:
    """Which samples lie in each block of each file. file [N], offset [N]: of every sample."""

    def __init__(self, file: NDArray[np.int64], offset: NDArray[np.int64]) -> None:
        self._stored = np.lexsort((offset, file))
        self._numbers = _block_number(file.astype(np.int64), offset // _BLOCK_BYTES)[self._stored]

    def samples(self, file: int, block: int) -> NDArray[np.int64]:
        """Return the ids of the samples that begin in a block, in the order in which they lie."""
        number = _block_number(file, block)
        first, stop = np.searchsorted(self._numbers, (number, number + 1))
        return self._stored[first:stop]


_Numbers = TypeVar("_Numbers", int, NDArray[np.int64])


def _block_number(file: _Numbers, block: _Numbers) -> _Numbers:
    return file * 2**32 + block


@dataclass(frozen=True)
class _Span:
    """Bytes of one file that one request fetches. numbers: of the extents in it, among those that were asked for."""

    file: int
    start: int
    stop: int
    numbers: tuple[int, ...]

    def part(self, content: bytes, extent: Extent) -> bytes:
        """Return an extent's part of the span's bytes."""
        return content[extent.offset - self.start : extent.offset - self.start + extent.num_bytes]


def _spans(extents: Sequence[Extent]) -> list[_Span]:
    """Return requests that cover these extents, neighbours in one."""
    spans: list[_Span] = []
    for number in sorted(range(len(extents)), key=lambda number: (extents[number].file, extents[number].offset)):
        extent = extents[number]
        stop = extent.offset + extent.num_bytes
        last = spans[-1] if spans else None
        if (
            last is not None
            and last.file == extent.file
            and extent.offset - last.stop <= _MAX_GAP
            and stop - last.start <= _MAX_SPAN
        ):
            spans[-1] = _Span(last.file, last.start, max(last.stop, stop), (*last.numbers, number))
        else:
            spans.append(_Span(extent.file, extent.offset, stop, (number,)))
    return spans

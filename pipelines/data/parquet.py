"""Parquet with the hub's image schema: a struct `image {bytes, path}` and a label, in one file or many.

Without a column for the label, the images have none; a column of lists holds several labels of an image.

Rows of Parquet lie in compressed groups, so one image cannot be read without its whole group: such files are read in
order, once, into a pack. Names of classes come from the schema's metadata, where Hugging Face's libraries put them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.labels import number_lists
from pipelines.data.listing import canonical_paths, find_containers, name_numbers, number_classes
from pipelines.data.pack import SHARD_BYTES, VERSION, Sample
from pipelines.data.parquet_files import (
    Footer,
    class_names,
    columns_of,
    open_parquet,
    read_footers,
    refusing_damaged,
    with_rows,
)
from pipelines.data.parquet_labels import is_list, read_labels
from pipelines.places import Found, Place

# A row group larger than this many shards is cut: a shard is held in memory.
_MOST_SHARDS = 2
_READ_BYTES = 8 * 2**20  # of a file at once: a column of a row group may be larger than memory


def find_parquet(place: Place, split: str) -> tuple[Found, ...]:
    """Return the Parquet files of a split."""
    return find_containers(place, split, (".parquet",))


@dataclass(frozen=True)
class _Shard:
    """The rows of one file that become one shard: those of some row groups, or a part of one that is large.

    first_row: the number of its first row in the split; skipped: rows of the first group before it.
    """

    file: str
    groups: tuple[int, ...]
    first_row: int
    num_rows: int
    skipped: int = 0
    is_part: bool = False


@dataclass(frozen=True)
class ParquetPacking:
    """A split's Parquet files on their way into a pack, row groups in order."""

    place: Place
    split: str
    files: tuple[Found, ...]
    shard_bytes: int = SHARD_BYTES
    acceptance: Acceptance = USUAL

    @cached_property
    def key(self) -> str:
        """A digest of the files' names, sizes and times, and of how they are cut."""
        parts = [[file.name, file.num_bytes, file.mtime_ns] for file in self.files]
        cut = [VERSION, self.place.root, self.split, parts, self.shard_bytes, *self.acceptance.key]
        if any(shard.is_part for shard in self._shards):
            cut.append("large row groups are cut")
        return sha256(json.dumps(cut).encode()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the metadata; for labels that are text, that text; for bare numbers, their digits."""
        return self._classes_and_labels[0]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels: whether their column is one of lists."""
        column = self._columns[1]
        return column is not None and is_list(with_rows(self._footers)[0].schema.field(column).type)

    @property
    def num_shards(self) -> int:
        """The number of shards that the rows make."""
        return len(self._shards)

    def samples(self, number: int) -> Iterator[Sample]:
        """Yield the rows of a shard."""
        shard, (image, _) = self._shards[number], self._columns
        name = self.place.name_of(shard.file)
        labels, lists = self._labels(shard.first_row)
        width = len(str(self.num_rows))
        start = 0
        with self.place.open(shard.file) as file:
            for batch in self._batches(file, shard, image):
                column = batch.column(0)
                contents = column.field("bytes") if pa.types.is_struct(column.type) else column
                given = column.field("path").to_pylist() if _has_paths(column.type) else [None] * len(batch)
                if any(given) and contents.null_count == len(batch):
                    raise Refused(
                        f"{name} holds paths (such as {next(filter(None, given))}) and no images; write it again with "
                        "the images embedded, as push_to_hub and embed_table_storage of the library datasets do"
                    )
                rows = range(shard.first_row + start, shard.first_row + start + len(batch))
                names = [_name(path, row, width) for path, row in zip(given, rows, strict=True)]
                own = labels[start : start + len(batch)]
                several = lists[start : start + len(batch)].to_pylist() if lists is not None else [()] * len(batch)
                paths = canonical_paths(self.split, () if self.multi_label else self.classes, own, pa.array(names))
                for path, label, numbers, content in zip(
                    paths.to_pylist(), own.tolist(), several, contents.to_pylist(), strict=True
                ):
                    yield Sample(path, label, content or b"", f"{name}: {path}", tuple(numbers))
                start += len(batch)

    @cached_property
    def _columns(self) -> tuple[str, str | None]:
        """Return the names of (the column of images, that of labels if any)."""
        return columns_of(self._footers)

    def _batches(self, file: pa.NativeFile, shard: _Shard, image: str) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a shard, a few at a time."""
        # Else the group's whole column is read ahead.
        sparing: dict[str, Any] = {"buffer_size": _READ_BYTES, "pre_buffer": False} if shard.is_part else {}
        name = self.place.name_of(shard.file)
        opened = open_parquet(file, name, **sparing)
        at, stop = 0, shard.skipped + shard.num_rows
        with refusing_damaged(name):
            for batch in opened.iter_batches(256, row_groups=list(shard.groups), columns=[image]):
                rows = batch.slice(max(0, shard.skipped - at), max(0, stop - max(at, shard.skipped)))
                rows.validate(full=True)  # names that are not UTF-8
                if len(rows):
                    yield rows
                at += len(batch)
                if at >= stop:
                    return

    @cached_property
    def _footers(self) -> tuple[Footer, ...]:
        return read_footers(self.place, self.files)

    @cached_property
    def _shards(self) -> tuple[_Shard, ...]:
        shards: list[_Shard] = []
        row = 0
        for found in self._footers:
            groups: list[int] = []
            first, size = row, 0
            for group, (num_rows, num_bytes) in enumerate(found.groups):
                if num_bytes > _MOST_SHARDS * self.shard_bytes and num_rows > 1:
                    if groups:
                        shards.append(_Shard(found.file, tuple(groups), first, row - first))
                    shards += _parts(found.file, group, row, num_rows, -(-num_bytes // self.shard_bytes))
                    row += num_rows
                    groups, first, size = [], row, 0
                    continue
                groups.append(group)
                size += num_bytes
                row += num_rows
                if size >= self.shard_bytes or group == len(found.groups) - 1:
                    shards.append(_Shard(found.file, tuple(groups), first, row - first))
                    groups, first, size = [], row, 0
        return tuple(shards)

    @property
    def num_rows(self) -> int:
        """The number of images."""
        return len(self._classes_and_labels[1])

    def _labels(self, first_row: int) -> tuple[NDArray[np.int32], pa.ListArray | None]:
        """Return (the labels of the rows from `first_row` on, or 0; their several labels, or None)."""
        found = self._classes_and_labels[1]
        if isinstance(found, pa.ListArray):
            return np.zeros(len(found) - first_row, dtype=np.int32), found.slice(first_row)
        return found[first_row:], None

    @cached_property
    def _classes_and_labels(self) -> tuple[tuple[str, ...], NDArray[np.int32] | pa.ListArray]:
        """Return (the names of the classes, the label of every row, or its several labels)."""
        column = self._columns[1]
        if column is None:
            return (), np.zeros(sum(footer.num_rows for footer in self._footers), dtype=np.int32)
        values = read_labels(self.place, self._footers, column)
        if self.multi_label:
            return number_lists(values, class_names(self._footers, column), self.place.root)
        if not len(values) or values.null_count:
            raise Refused(f"{self.place.root}: column {column!r} has {values.null_count} rows without a label")
        if not pa.types.is_integer(values.type):
            return number_classes(values, self.place.root)
        numbers = values.to_numpy()
        return name_numbers(numbers, class_names(self._footers, column), self.place.root), numbers.astype(np.int32)


def _parts(file: str, group: int, first_row: int, num_rows: int, num_parts: int) -> list[_Shard]:
    """Return a row group in parts of about as many rows each."""
    bounds = np.linspace(0, num_rows, min(num_parts, num_rows) + 1).astype(int).tolist()
    return [
        _Shard(file, (group,), first_row + start, stop - start, start, is_part=True) for start, stop in pairwise(bounds)
    ]


def _has_paths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _name(path: str | None, row: int, width: int) -> str:
    """Return the name of an image; one without a name gets its row's number."""
    return PurePosixPath(path).name if path else f"{row:0{width}d}"

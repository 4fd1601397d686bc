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
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.labels import number_lists
from pipelines.data.listing import canonical_paths, find_containers, name_numbers, number_classes
from pipelines.data.pack import SHARD_BYTES, VERSION, Sample
from pipelines.places import Found, Place

_LABELS = ("label", "fine_label", "labels")  # fine_label: CIFAR-100's


def find_parquet(place: Place, split: str) -> tuple[Found, ...]:
    """Return the Parquet files of a split."""
    return find_containers(place, split, (".parquet",))


@dataclass(frozen=True)
class _Shard:
    """The row groups of one file that become one shard. first_row: of the split, the number of its first row."""

    file: str
    groups: tuple[int, ...]
    first_row: int


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
        return sha256(json.dumps(cut).encode()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names in the metadata; for labels that are text, that text; for bare numbers, their digits."""
        return self._classes_and_labels[0]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels: whether their column is one of lists."""
        column = self._columns[1]
        return column is not None and _is_list(self._schema.field(column).type)

    @property
    def num_shards(self) -> int:
        """How many shards the row groups make."""
        return len(self._shards)

    def samples(self, number: int) -> Iterator[Sample]:
        """Yield the rows of a shard."""
        shard, (image, _) = self._shards[number], self._columns
        name = self.place.name_of(shard.file)
        labels, lists = self._labels(shard.first_row)
        width = len(str(self.num_rows))
        start = 0
        with self.place.open(shard.file) as file:
            for batch in pq.ParquetFile(file).iter_batches(256, row_groups=list(shard.groups), columns=[image]):
                column = batch.column(0)
                contents = column.field("bytes") if pa.types.is_struct(column.type) else column
                given = column.field("path").to_pylist() if _has_paths(column.type) else [None] * len(batch)
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
        """Return the names of (the column of images, that of labels if any). Refused for no images, or several."""
        schema, name = self._schema, self.place.name_of(self.files[0].name)
        images = [field.name for field in schema if _holds_images(field.type)]
        if len(images) != 1:
            found = f"columns {', '.join(schema.names)}, {len(images) or 'none'} of which hold images"
            raise Refused(f"{name} has {found}; give Parquet with one column of struct {{bytes, path}}")
        return images[0], next((label for label in _LABELS if label in schema.names), None)

    @cached_property
    def _schema(self) -> pa.Schema:
        with self.place.open(self.files[0].name) as file:
            return _open(file, self.place.name_of(self.files[0].name)).schema_arrow

    @cached_property
    def _shards(self) -> tuple[_Shard, ...]:
        shards, row = [], 0
        for found in self.files:
            with self.place.open(found.name) as file:
                metadata = _open(file, self.place.name_of(found.name)).metadata
            groups: list[int] = []
            first, size = row, 0
            for group in range(metadata.num_row_groups):
                groups.append(group)
                size += metadata.row_group(group).total_byte_size
                row += metadata.row_group(group).num_rows
                if size >= self.shard_bytes or group == metadata.num_row_groups - 1:
                    shards.append(_Shard(found.name, tuple(groups), first))
                    groups, first, size = [], row, 0
        return tuple(shards)

    @property
    def _rows_in_shards(self) -> int:
        """How many rows the files have, by their metadata."""
        rows = 0
        for found in self.files:
            with self.place.open(found.name) as file:
                rows += _open(file, self.place.name_of(found.name)).metadata.num_rows
        return rows

    @property
    def num_rows(self) -> int:
        """How many images there are."""
        return len(self._classes_and_labels[1])

    def _labels(self, first_row: int) -> tuple[NDArray[np.int32], pa.ListArray | None]:
        """Return (the label of the rows from one on, or 0; their several labels, or None)."""
        found = self._classes_and_labels[1]
        if isinstance(found, pa.ListArray):
            return np.zeros(len(found) - first_row, dtype=np.int32), found.slice(first_row)
        return found[first_row:], None

    @cached_property
    def _classes_and_labels(self) -> tuple[tuple[str, ...], NDArray[np.int32] | pa.ListArray]:
        """Return (the names of the classes, the label of every row, or its several labels)."""
        column, parts = self._columns[1], []
        if column is None:
            return (), np.zeros(self._rows_in_shards, dtype=np.int32)
        for found in self.files:
            with self.place.open(found.name) as file:
                parts.append(_open(file, self.place.name_of(found.name)).read([column])[column].combine_chunks())
        values = pa.chunked_array(parts).combine_chunks()
        if self.multi_label:
            return number_lists(values, _class_names(self._schema, column), self.place.root)
        if not len(values) or values.null_count:
            raise Refused(f"{self.place.root}: column {column!r} has {values.null_count} rows without a label")
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return number_classes(values, self.place.root)
        numbers = values.cast(pa.int64()).to_numpy()
        return name_numbers(numbers, _class_names(self._schema, column), self.place.root), numbers.astype(np.int32)


def _is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds a list a row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _open(file: pa.NativeFile, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise Refused(f"{name} is no whole Parquet file ({error}); fetch it again") from error


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _has_paths(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)


def _name(path: str | None, row: int, width: int) -> str:
    """Return what an image is called; one without a name is called by its row."""
    return PurePosixPath(path).name if path else f"{row:0{width}d}"


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """Return the names that Hugging Face's libraries keep in the schema's metadata; None where there are none."""
    stored = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(stored).get("info", {}).get("features", {}).get(column, {}) if stored else {}
    names = (feature.get("feature") or feature).get("names")  # of a list, those of its items
    return [str(name) for name in names] if names else None

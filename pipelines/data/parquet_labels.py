"""The column of labels of Parquet files: read file by file, brought to numbers, text or lists, refused by file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcore.errors import Refused
from pipelines.places import Found, Place


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds a list a row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def open_parquet(file: pa.NativeFile, name: str, **options: Any) -> pq.ParquetFile:
    """Return a Parquet file, its metadata read; Refused, by its name, for what is none."""
    try:
        return pq.ParquetFile(file, **options)
    except pa.ArrowInvalid as error:
        raise Refused(f"{name} is no whole Parquet file ({error}); fetch it again") from error


def read_labels(place: Place, files: Iterable[Found], column: str) -> pa.Array:
    """Return the column of all files: integers of 64 bits, text, or lists, with nulls where there is no label.

    Refused for files that have it not, or in kinds that do not go together.
    """
    parts: list[pa.Array] = []
    for found in files:
        name = place.name_of(found.name)
        with place.open(found.name) as file:
            opened = open_parquet(file, name)
            if column not in opened.schema_arrow.names:
                raise Refused(f"{name} has no column {column!r}, which other files of the split have; add or remove it")
            read = opened.read([column])[column].combine_chunks()
        part = _plain(read, f"{name}: column {column!r}")
        if parts and part.type != parts[0].type and len(part):
            kinds = f"{part.type}, and that of the first file {parts[0].type}"
            raise Refused(f"{name}: column {column!r} is of {kinds}; give one kind of label")
        if not parts or len(part):
            parts.append(part)
    return pa.concat_arrays([part for part in parts if part.type == parts[0].type])


def _plain(values: pa.Array, where: str) -> pa.Array:
    """Return one file's labels as integers or text; lists as they are. where: the file and column, for an error."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    if is_list(kind):
        if _is_text(kind.value_type) or pa.types.is_integer(kind.value_type):
            return values
        raise Refused(f"{where} holds lists of {kind.value_type}; give lists of class numbers or names")
    if _is_text(kind):
        return values.cast(pa.large_string())
    try:
        return values.cast(pa.int64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise Refused(f"{where} is of {kind}, not class numbers or names ({reason}); give one of these") from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

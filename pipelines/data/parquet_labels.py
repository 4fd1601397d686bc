"""The column of labels of Parquet files: read file by file, brought to numbers, text or lists; errors name the file."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from kdcore.errors import Refused, one_line
from pipelines.data.parquet_files import Footer, open_parquet, refusing_damaged
from pipelines.places import Place


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds a list per row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def read_labels(place: Place, footers: Iterable[Footer], column: str) -> pa.Array:
    """Return the column of all files: integers of 64 bits, text, or lists of these, with nulls where there is no label.

    Refused for kinds of label that differ between files.
    """
    parts: list[pa.Array] = []
    for footer in footers:
        if not footer.num_rows:
            continue
        with place.open(footer.file) as file:
            opened = open_parquet(file, footer.name)
            with refusing_damaged(footer.name):
                read = opened.read([column])[column].combine_chunks()
                read.validate(full=True)  # text that is not UTF-8
        part = _plain(read, f"{footer.name}: column {column!r}")
        if parts and part.type != parts[0].type:
            kinds = f"{part.type}, and that of the first file {parts[0].type}"
            raise Refused(f"{footer.name}: column {column!r} is of {kinds}; give one kind of label")
        parts.append(part)
    return pa.concat_arrays(parts) if parts else pa.array([], pa.int64())


def _plain(values: pa.Array, where: str) -> pa.Array:
    """Return one file's labels as integers or text, or lists of these. where: the file and column, for an error."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    item = kind.value_type if is_list(kind) else kind
    if is_list(kind) and not (_is_text(item) or pa.types.is_integer(item)):
        raise Refused(f"{where} holds lists of {item}; give lists of class numbers or names")
    plain = pa.large_string() if _is_text(item) else pa.int64()
    try:
        return values.cast(pa.list_(plain) if is_list(kind) else plain)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise Refused(
            f"{where} is of {kind}, not class numbers or names ({one_line(error, 100)}); give one of these"
        ) from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

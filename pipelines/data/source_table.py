"""A source's table of its samples: its metadata, its digest, and where the bytes lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kdcore.located import is_uri
from pipelines.data.copies import CopyPolicy
from pipelines.data.labels import COLUMN as LABELS
from pipelines.data.labels import digest_of, is_multi_label
from pipelines.data.remote import RemoteExtents, RemoteFiles
from pipelines.data.storage import Extents, Files, Storage, Written
from pipelines.places import Place
from pipelines.vectors import to_arrow, to_numpy

_VERSION = 1  # of what a fingerprint covers


def source_table(classes: Sequence[str], table: pa.Table, files: Sequence[tuple[str, int]] = ()) -> pa.Table:
    """Return a table with the columns of `Source.table` with classes, fingerprint and files as metadata."""
    metadata: dict[str, Any] = {"classes": json.dumps(classes), "fingerprint": fingerprint(tuple(classes), table)}
    if files:
        metadata["files"] = json.dumps(files)
    return table.replace_schema_metadata(metadata)


def with_places_in_copy(table: pa.Table) -> pa.Table:
    """Return a whole index's table with the columns of a node's copy: rows, and for single files an offset of each."""
    table = table.append_column("row", to_arrow(np.arange(len(table))))
    if "file" in table.column_names:
        return table
    sizes = to_numpy(table["num_bytes"])
    return table.append_column("place_in_copy", to_arrow(np.cumsum(sizes) - sizes))


def storage_of(
    root: str, table: pa.Table, files: Sequence[tuple[str, int]], copies: CopyPolicy | None = None
) -> Storage:
    """Return the storage that fetches the bytes of samples. copies: None to keep nothing of an object store."""
    if is_uri(root):
        place = Place.of(root, "data.root")
        return (RemoteExtents if "file" in table.column_names else RemoteFiles)(place, files, table, copies)
    if "file" in table.column_names:
        return Extents(root, files, table)
    location = "location" if "location" in table.column_names else "path"
    written = None
    if {"mtime_ns", "crc32"} <= set(table.column_names):  # the checksums are known once the images were looked at
        written = Written(to_numpy(table["mtime_ns"]), to_numpy(table["crc32"]))
    return Files(root, table[location].chunk(0), to_numpy(table["num_bytes"]), written)


def fingerprint(classes: tuple[str, ...], table: pa.Table) -> str:
    """Return the SHA-256 of what makes these images a data set: see `Source.fingerprint`."""
    start: list[Any] = [_VERSION, classes]
    if is_multi_label(table):
        start.append(digest_of(table[LABELS].chunk(0)))
    return digest_rows(json.dumps(start), table, ("label", "height", "width", "num_bytes", "crc32"))


def digest_rows(start: str, table: pa.Table, numbers: Sequence[str]) -> str:
    """Return the SHA-256 of a text, a table's paths and its named columns of numbers.

    It hashes the buffers: no value becomes an object, so that 14 million rows take seconds.
    """
    digest = hashlib.sha256(start.encode())
    paths = table["path"].chunk(0)
    _, offsets, text = paths.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[paths.offset : paths.offset + len(paths) + 1]
    digest.update(np.diff(ends).astype("<i8").tobytes())
    digest.update(memoryview(text)[ends[0] : ends[-1]])
    for name in numbers:
        digest.update(to_numpy(table[name]).astype("<i8").tobytes())
    return digest.hexdigest()

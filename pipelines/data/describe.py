"""From a container's content to the table of an index: every image looked at once, in threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance, Inspected, check_broken, inspect_stored
from pipelines.data.images import is_too_large, refuse_too_large
from pipelines.data.listing import Listing, in_order_of_id
from pipelines.data.source_table import source_table, storage_of, with_places_in_copy
from pipelines.data.storage import Storage
from pipelines.places import Place
from pipelines.vectors import to_numpy

_READ_AT_ONCE = 64  # images of one task
_TASKS_AT_ONCE = 64  # in flight: bounds the memory of a build, whatever the size of the data


def describe(place: Place, listing: Listing, progress: IndexProgress, acceptance: Acceptance) -> pa.Table:
    """Return the table of an index: every image looked at, in order of id."""
    files = [(file.name, file.num_bytes) for file in listing.files]
    storage = storage_of(place.location, _with_places_in_store(place, listing.table), files)
    facts, broken = _look_at_all(storage, listing.table, progress, acceptance)
    check_broken([broken[row] for row in sorted(broken)], len(facts), acceptance.on_broken, place.root)
    useless = ("ctime_ns",) if place.is_local else ("mtime_ns",)
    table = listing.table.drop_columns([name for name in useless if name in listing.table.column_names])
    for name, kind, values in zip(("height", "width", "crc32"), (np.int32, np.int32, np.uint32), facts.T, strict=True):
        table = table.append_column(name, pa.array(values.astype(kind)))
    table = in_order_of_id(_without(table, broken))  # the order of samples of one path is known only now
    return _naming(source_table(listing.classes, table, files), broken)


def accepted_of_pack(place: Place, table: pa.Table, progress: IndexProgress, acceptance: Acceptance) -> pa.Table:
    """Return the table of a pack's index, whose images were looked at when they were packed, without those refused.

    Refused by `acceptance`: for too many pixels, of which a packer may have allowed more, or by decoding them.
    """
    storage = storage_of(
        place.location, _with_places_in_store(place, table), json.loads(table.schema.metadata[b"files"])
    )
    rows = too_large(table, acceptance.max_pixels)
    sizes = zip(table["height"].take(rows).to_pylist(), table["width"].take(rows).to_pylist(), strict=True)
    broken = {}
    for row, name, size in zip(rows.tolist(), storage.names(rows), sizes, strict=True):
        try:
            refuse_too_large(name, size, acceptance.max_pixels)
        except Refused as error:
            broken[row] = str(error)
    if acceptance.check == "decode":
        broken |= _look_at_all(storage, table, progress, acceptance)[1]
    before = json.loads(table.schema.metadata.get(b"broken", b"[]"))
    num = len(table) + len(before)
    check_broken([broken[row] for row in sorted(broken)], num, acceptance.on_broken, place.root)
    if not broken:
        return table
    metadata = table.schema.metadata
    kept = source_table(json.loads(metadata[b"classes"]), _without(table, broken))
    return _naming(kept.replace_schema_metadata({**metadata, **kept.schema.metadata}), broken)


def too_large(table: pa.Table, max_pixels: int) -> NDArray[np.int64]:
    """Return the rows of a table whose images have too many pixels: see `is_too_large`."""
    sides = np.sort([to_numpy(table[name]).astype(np.int64) for name in ("height", "width")], axis=0)
    return np.flatnonzero(is_too_large(sides[0], sides[1], max_pixels))


def _without(table: pa.Table, broken: dict[int, str]) -> pa.Table:
    """Return a table without some rows. broken: {row: why}."""
    rows = np.setdiff1d(np.arange(len(table)), list(broken))
    return table.take(pa.array(rows)).combine_chunks() if broken else table


def _naming(table: pa.Table, broken: dict[int, str]) -> pa.Table:
    """Return the table of an index with what was left out as broken added to what it names already."""
    if not broken:
        return table
    metadata = table.schema.metadata
    messages = json.loads(metadata.get(b"broken", b"[]")) + [broken[row] for row in sorted(broken)]
    return table.replace_schema_metadata({**metadata, b"broken": json.dumps(messages).encode()})


def _look_at_all(
    storage: Storage, table: pa.Table, progress: IndexProgress, acceptance: Acceptance
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return (height, width, crc32) of every image [N,3], and {row: why} of those that are broken."""
    facts = np.zeros((len(table), 3), dtype=np.int64)
    broken: dict[int, str] = {}

    def inspect(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Inspected]:
        return rows, inspect_stored(storage, rows, acceptance)

    order = _stored_order(table)
    with progress.of(len(order)), ThreadPoolExecutor() as threads:
        at_once = _READ_AT_ONCE * _TASKS_AT_ONCE
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            for rows, found in threads.map(inspect, np.array_split(some, -(-len(some) // _READ_AT_ONCE))):
                facts[rows] = found.facts
                broken |= {int(rows[row]): message for row, message in found.broken.items()}
                progress.advance(len(rows))
    return facts, broken


def _with_places_in_store(place: Place, table: pa.Table) -> pa.Table:
    """Return a listing's table with the columns that reading from a store needs; checksums are not known yet."""
    if place.is_local:
        return table
    table = with_places_in_copy(table)
    if "crc32" in table.column_names:
        return table
    return table.append_column("crc32", pa.array(np.zeros(len(table), dtype=np.int64)))


def _stored_order(table: pa.Table) -> NDArray[np.int64]:
    """Return the rows in the order in which a disk reads them fastest."""
    if "file" not in table.column_names:
        return np.arange(len(table))
    return np.lexsort((to_numpy(table["offset"]), to_numpy(table["file"])))


class IndexProgress:
    """A progress bar. show: None shows it on a terminal only."""

    def __init__(self, show: bool | None, what: str) -> None:
        console = Console(stderr=True)
        self._what = what
        columns = (TextColumn("{task.description}", markup=False), *Progress.get_default_columns()[1:])
        disable = not (console.is_terminal if show is None else show)
        self._bar = Progress(*columns, console=console, transient=True, disable=disable)

    @contextmanager
    def of(self, total: int) -> Iterator[None]:
        """Show the bar, of `total` images, while the body runs."""
        with self._bar:
            self._task = self._bar.add_task(f"indexing {self._what}", total=total)
            yield

    def advance(self, num_images: int) -> None:
        """Count images that are done."""
        self._bar.advance(self._task, num_images)

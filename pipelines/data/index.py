"""The index of a split: every image looked at once, kept as an Arrow file and read memory-mapped.

An index is good for as long as what was cheap to look at is as it was: the files of a container by name, size and time;
of an image folder every folder's time of modification, which changes with each file that is added, removed or renamed,
and the size and time of 1,000 of the files. A file that was written over in place beside those is found when it is
read, by its size. `relist` looks at every file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console
from rich.progress import Progress

from kdcore.errors import Refused
from pipelines.data.broken import Inspected, OnBroken, check_broken, inspect_stored
from pipelines.data.copies import CopyPolicy
from pipelines.data.kinds import PARQUET, Containers, Kind, recognise
from pipelines.data.listing import Listing
from pipelines.data.pack import INDEX, read_pack
from pipelines.data.packing import build_pack
from pipelines.data.parquet import ParquetPacking
from pipelines.data.source import Source, digest_rows, open_table, source_table, storage_of
from pipelines.data.traces import Traces, containers_of, look_again, take_traces
from pipelines.files import write_json, write_whole
from pipelines.places import Place

_VERSION = 1  # of the name of an index
_READ_AT_ONCE = 64  # images of one task
_TASKS_AT_ONCE = 64  # in flight: bounds the memory of a build, whatever the size of the data


class _Latest(BaseModel):
    """Which index of a split was made or found last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """The kind of container."""

    index: str
    """The file of the index, within the folder of indexes."""

    stored_in: str | None
    """The pack that the images were put into, within the folder of indexes; None: they lie at the root."""

    on_broken: OnBroken
    """What was done about broken images."""

    traces: Traces
    """What was seen of the split then."""


def build_index(
    root: str | Path,
    split: str,
    cache_dir: str | Path,
    progress: bool | None = None,
    relist: bool = False,
    on_broken: OnBroken = "refuse",
    copies: CopyPolicy | None = None,
) -> Source:
    """Return the images of a split, their index read from cache_dir where nothing changed, else built there.

    root: a folder, or a URI that pyarrow.fs knows, which holds the split in any container that
    `pipelines.data.kinds` recognises. Building reads every image once, in parallel; Parquet is put into a pack in
    cache_dir on the way. progress: show a bar; None: on a terminal. relist: look at every file, whatever the traces
    say. copies: what a node keeps of an object store; None: nothing. Refused for whatever is no such container, and
    for broken images as on_broken says.
    """
    place = Place.of(root, "data.root")
    kind, containers = recognise(place, split)
    pointer = _pointer(place, split, cache_dir)
    latest = None if relist else _read_latest(pointer)
    if latest is not None and _is_good(latest, place, kind, containers, on_broken, Path(cache_dir)):
        return _open(place, latest, Path(cache_dir), copies)
    latest = _make(place, split, kind, containers, Path(cache_dir), _Progress(progress, place.root), on_broken)
    write_json(pointer, latest.model_dump(mode="json"))
    return _open(place, latest, Path(cache_dir), copies)


def open_index(root: str | Path, split: str, cache_dir: str | Path, copies: CopyPolicy | None = None) -> Source:
    """Return the images whose index `build_index` has made or found last, without a look at where they lie.

    For the workers of a run, whose driver has just looked. Refused where there is no such index.
    """
    place = Place.of(root, "data.root")
    latest = _read_latest(_pointer(place, split, cache_dir))
    if latest is None:
        raise Refused(
            f"there is no index of {place.name_of(split)} in {cache_dir}; that folder must be one all nodes see"
        )
    return _open(place, latest, Path(cache_dir), copies)


def _pointer(place: Place, split: str, cache_dir: str | Path) -> Path:
    """Return the file that says which index was made or found last."""
    return Path(cache_dir) / f"latest-{hashlib.sha256(place.name_of(split).encode()).hexdigest()[:16]}.json"


def _read_latest(pointer: Path) -> _Latest | None:
    try:
        return _Latest.model_validate_json(pointer.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _is_good(
    latest: _Latest, place: Place, kind: Kind, containers: Containers, on_broken: OnBroken, cache_dir: Path
) -> bool:
    """Return whether an index is still that of what lies there, as far as is cheap to see."""
    return (
        (latest.kind, latest.on_broken) == (kind.name, on_broken)
        and latest.traces.containers == containers_of(containers)
        and (cache_dir / latest.index).exists()
        and look_again(place.root, latest.traces)
    )


def _open(place: Place, latest: _Latest, cache_dir: Path, copies: CopyPolicy | None) -> Source:
    table = pa.ipc.open_file(pa.memory_map(str(cache_dir / latest.index))).read_all()
    if latest.stored_in is not None:
        return open_table(place.root, table, str((cache_dir / latest.stored_in).resolve()), None, latest.on_broken)
    return open_table(place.root, table, None if place.is_local else place.location, copies, latest.on_broken)


def _make(
    place: Place,
    split: str,
    kind: Kind,
    containers: Containers,
    cache_dir: Path,
    progress: _Progress,
    on_broken: OnBroken,
) -> _Latest:
    """List a split and build its index, or find the one that was built for such a listing."""
    if kind is PARQUET:
        packing = ParquetPacking(place, split, containers)
        folder = f"pack-{packing.key[:32]}"
        with progress.of(packing.num_rows):
            build_pack(packing, Place.of(cache_dir / folder, "output_dir"), split, on_broken, progress.advance)
        traces, name, stored_in = take_traces(containers, None), f"{folder}/{split}/{INDEX}", folder
        return _Latest(kind=kind.name, index=name, stored_in=stored_in, on_broken=on_broken, traces=traces)
    listing = None if kind.list is None else kind.list(place, split, containers)
    name = f"index-{_listing_digest(place, split, containers, listing, on_broken)[:32]}.arrow"
    if not (cache_dir / name).exists():
        table = read_pack(place, split) if listing is None else _describe(place, listing, progress, on_broken)
        _write(cache_dir / name, table)
    traces = take_traces(containers, listing)
    return _Latest(kind=kind.name, index=name, stored_in=None, on_broken=on_broken, traces=traces)


def _listing_digest(
    place: Place, split: str, containers: Containers, listing: Listing | None, on_broken: OnBroken
) -> str:
    """Return a digest of all that an index is a function of, as far as a listing shows it."""
    start = f"{_VERSION} {split}"
    if containers:
        start += json.dumps([place.root, containers_of(containers)])
    if on_broken != "refuse":
        start += on_broken
    if listing is None:
        return hashlib.sha256(start.encode()).hexdigest()
    columns = ("num_bytes", "mtime_ns", "file", "offset")
    return digest_rows(start, listing.table, [name for name in columns if name in listing.table.column_names])


def _describe(place: Place, listing: Listing, progress: _Progress, on_broken: OnBroken) -> pa.Table:
    """Return the table of an index: every image looked at, in the order in which they lie."""
    files = [(file.name, file.num_bytes) for file in listing.files]
    storage = storage_of(place.location, _with_extents_of_store(place, listing.table), files)
    facts = np.zeros((len(listing.table), 3), dtype=np.int64)
    broken: dict[int, str] = {}

    def inspect(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Inspected]:
        return rows, inspect_stored(storage, rows)

    order = _stored_order(listing.table)
    with progress.of(len(order)), ThreadPoolExecutor() as threads:
        at_once = _READ_AT_ONCE * _TASKS_AT_ONCE
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            for rows, found in threads.map(inspect, np.array_split(some, -(-len(some) // _READ_AT_ONCE))):
                facts[rows] = found.facts
                broken |= {int(rows[row]): message for row, message in found.broken.items()}
                progress.advance(len(rows))
    check_broken([broken[row] for row in sorted(broken)], len(order), on_broken, place.root)
    table = listing.table.drop_columns([name for name in ("mtime_ns",) if name in listing.table.column_names])
    for name, kind, values in zip(("height", "width", "crc32"), (np.int32, np.int32, np.uint32), facts.T, strict=True):
        table = table.append_column(name, pa.array(values.astype(kind)))
    if broken:
        table = table.take(np.setdiff1d(order, list(broken))).combine_chunks()
    table = source_table(listing.classes, table, files)
    more = {"broken": json.dumps([broken[row] for row in sorted(broken)])} if broken else {}
    return table.replace_schema_metadata({**table.schema.metadata, **more})


def _with_extents_of_store(place: Place, table: pa.Table) -> pa.Table:
    """Return a listing's table with the columns that a store's extents have, not known yet."""
    if place.is_local:
        return table
    nothing = pa.array(np.zeros(len(table), dtype=np.int64))
    return table.append_column("row", nothing).append_column("crc32", nothing)


def _stored_order(table: pa.Table) -> NDArray[np.int64]:
    """Return the rows in the order in which a disk reads them fastest."""
    if "file" not in table.column_names:
        return np.arange(len(table))
    return np.lexsort((table["offset"].to_numpy(), table["file"].to_numpy()))


def _write(path: Path, table: pa.Table) -> None:
    """Write the table as one record batch."""

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_whole(path, write)


class _Progress:
    """A bar on a terminal. show: None for where there is one."""

    def __init__(self, show: bool | None, what: str) -> None:
        console = Console(stderr=True)
        self._what = what
        self._bar = Progress(
            console=console, transient=True, disable=not (console.is_terminal if show is None else show)
        )

    @contextmanager
    def of(self, total: int) -> Iterator[None]:
        """Show the bar, of so many images, while the body runs."""
        with self._bar:
            self._task = self._bar.add_task(f"indexing {self._what}", total=total)
            yield

    def advance(self, num_images: int) -> None:
        """Count images that are done."""
        self._bar.advance(self._task, num_images)

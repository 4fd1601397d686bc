"""The index of a split: every image looked at once, kept as an Arrow file and read memory-mapped.

An index is good as long as what is cheap to check has not changed: the files of a container by name, size and time;
for an image folder every folder's time of modification, which changes with each file that is added, removed or renamed,
and the size and time of 1,000 of the files. Any other file that was overwritten in place is found when it is
read, by its size, or by its time and then its checksum; a mark (`doubting`) makes the next command list every file, as
`relist` does. Single files in an object store are listed every time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from kdcore.errors import Refused
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.compressed import decompress, plain_files
from pipelines.data.copies import CopyPolicy
from pipelines.data.describe import IndexProgress, accepted_of_pack, describe, too_large
from pipelines.data.kinds import COMPRESSED, PARQUET, Containers, Kind, recognise
from pipelines.data.listing import Listing
from pipelines.data.pack import INDEX, find_pack, read_pack
from pipelines.data.packing import build_pack
from pipelines.data.parquet import ParquetPacking
from pipelines.data.source import Source, open_table
from pipelines.data.source_table import digest_rows
from pipelines.data.tars import list_tars
from pipelines.data.traces import Traces, containers_of, look_again, take_traces
from pipelines.files import remove_unfinished, write_json, write_whole
from pipelines.leases import leased
from pipelines.places import Place

logger = logging.getLogger("stillhouse")

# Of how a split is listed and which images are accepted: an index of an earlier version is built again. 1 held images
# that the loaders do not decode alike; 2 and 3 some more of these, lines of pixels, and guessed labels; 4 had samples
# of one path in the order of their storage, and one index for two folders whose files agree in name, size and time. 5
# did not hold when a file was written, and is good: only its size tells one that was written over.
_VERSION = 6
_INDEX_NAME = re.compile(r"index-[0-9a-f]{32}\.arrow")


class _Latest(BaseModel):
    """Which index of a split was made or found last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    """The kind of container."""

    index: str
    """The file of the index, within the folder of indexes."""

    stored_in: str | None
    """Where the images were put, within the folder of indexes; None: they lie at the root."""

    acceptance: Acceptance
    """Which images were accepted, and what was done about the others."""

    version: int
    """The version of the index."""

    traces: Traces
    """What was seen of the split then."""


def build_index(
    root: str | Path,
    split: str,
    cache_dir: str | Path,
    progress: bool | None = None,
    relist: bool = False,
    acceptance: Acceptance = USUAL,
    copies: CopyPolicy | None = None,
) -> Source:
    """Return the images of a split, their index read from cache_dir where nothing changed, else built there.

    root: a folder, or a URI that pyarrow.fs knows, which holds the split in any container that
    `pipelines.data.kinds` recognises. Building reads every image once, in parallel; Parquet is put into a pack in
    cache_dir on the way, and compressed tars are decompressed there. progress: show a bar; None: on a terminal. relist:
    look at every file, whatever the traces say. copies: what a node keeps of an object store; None: nothing. Refused
    for anything but such a container, and for images as `acceptance` says.
    """
    place = Place.of(root, "data.root")
    kind, containers = recognise(place, split)
    mark = _mark(place, split, cache_dir, acceptance)
    relist = relist or mark.exists()
    latest = None if relist else _read_latest(place, split, cache_dir, acceptance)
    if latest is not None and _is_good(latest, place, kind, containers, acceptance, Path(cache_dir)):
        return _open(place, latest, Path(cache_dir), mark, copies)
    progress_bar = IndexProgress(progress, place.root)
    with leased(Path(cache_dir), "index", name="index", wait=True):
        remove_unfinished(Path(cache_dir), _INDEX_NAME.fullmatch)
        # Another process may have just finished it:
        made = None if relist else _read_latest(place, split, cache_dir, acceptance)
        if made == latest or made is None or not _is_good(made, place, kind, containers, acceptance, Path(cache_dir)):
            made = _make(place, split, kind, containers, Path(cache_dir), progress_bar, acceptance)
            write_json(_pointer(place, split, cache_dir, acceptance), made.model_dump(mode="json"))
            mark.unlink(missing_ok=True)
            _say_what_is_left(latest, made, place.name_of(split), Path(cache_dir))
    return _open(place, made, Path(cache_dir), mark, copies)


def _say_what_is_left(latest: _Latest | None, made: _Latest, name: str, cache_dir: Path) -> None:
    """Log where the earlier images of a changed split are: a run that reads them there may still be at work."""
    if latest is None or latest.stored_in in (None, made.stored_in):
        return
    if (left := cache_dir / str(latest.stored_in)).is_dir():
        logger.info("%s holds the images of %s as they were before; remove it once no run reads them", left, name)


def open_index(
    root: str | Path,
    split: str,
    cache_dir: str | Path,
    copies: CopyPolicy | None = None,
    acceptance: Acceptance = USUAL,
) -> Source:
    """Return the images whose index `build_index` has made or found last, without looking at where they lie.

    For the workers of a run, whose driver has just looked. acceptance: the driver's; another run, which accepts other
    images, may have looked meanwhile. Refused where there is no such index.
    """
    place = Place.of(root, "data.root")
    latest = _read_latest(place, split, cache_dir, acceptance)
    if latest is None:
        settings = ", ".join(f"data.{name}={value}" for name, value in asdict(acceptance).items())
        raise Refused(
            f"there is no index of {place.name_of(split)} in {cache_dir} with {settings}; all nodes must see that "
            "folder"
        )
    return _open(place, latest, Path(cache_dir), _mark(place, split, cache_dir, acceptance), copies)


def _pointer(place: Place, split: str, cache_dir: str | Path, acceptance: Acceptance) -> Path:
    """Return the file that names the index that was made or found last with this acceptance."""
    name = place.name_of(split)
    if acceptance != USUAL:
        name += json.dumps(asdict(acceptance))
    return Path(cache_dir) / f"latest-{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def _mark(place: Place, split: str, cache_dir: str | Path, acceptance: Acceptance) -> Path:
    """Return the file whose presence says that an image was found to be other than the index says."""
    return _pointer(place, split, cache_dir, acceptance).with_suffix(".doubted")


def _read_latest(place: Place, split: str, cache_dir: str | Path, acceptance: Acceptance) -> _Latest | None:
    # Pointers of earlier versions have one name, whatever was accepted.
    for pointer in dict.fromkeys(_pointer(place, split, cache_dir, one) for one in (acceptance, USUAL)):
        try:
            latest = _Latest.model_validate_json(pointer.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            continue
        if latest.acceptance == acceptance:
            return latest
    return None


def _is_good(
    latest: _Latest, place: Place, kind: Kind, containers: Containers, acceptance: Acceptance, cache_dir: Path
) -> bool:
    """Return whether an index still matches what lies there, as far as is cheap to check."""
    return (
        (latest.kind, latest.acceptance) == (kind.name, acceptance)
        and latest.version in (5, _VERSION)
        and latest.traces.containers == containers_of(containers)
        and bool(latest.traces.containers or latest.traces.folders)  # single files in a store leave none
        and _is_whole(latest, cache_dir)
        and look_again(place.root, latest.traces)
    )


def _is_whole(latest: _Latest, cache_dir: Path) -> bool:
    """Return whether an index can be read, and the files that were put next to it have the size that they had."""
    table = _read(cache_dir / latest.index)
    if table is None or latest.stored_in is None:
        return table is not None
    folder = cache_dir / latest.stored_in
    try:
        files = json.loads(table.schema.metadata[b"files"])
        return all((folder / name).stat().st_size == num_bytes for name, num_bytes in files)
    except OSError:
        return False


def _open(place: Place, latest: _Latest, cache_dir: Path, mark: Path, copies: CopyPolicy | None) -> Source:
    table = _read(cache_dir / latest.index)
    if table is None:
        raise Refused(f"{cache_dir / latest.index} is missing or cut off; index {place.root} again")
    on_broken = latest.acceptance.on_broken
    if latest.stored_in is not None:
        return open_table(place.root, table, str((cache_dir / latest.stored_in).resolve()), None, on_broken, mark)
    return open_table(place.root, table, None if place.is_local else place.location, copies, on_broken, mark)


def _make(
    place: Place,
    split: str,
    kind: Kind,
    containers: Containers,
    cache_dir: Path,
    progress: IndexProgress,
    acceptance: Acceptance,
) -> _Latest:
    """List a split and build its index, or find the one that was built for such a listing."""
    listing, stored_in = None, None
    if kind is PARQUET:
        packing = ParquetPacking(place, split, containers, acceptance=acceptance)
        stored_in = f"pack-{packing.key[:32]}"
        packed = Place.of(cache_dir / stored_in, "output_dir")
        with progress.of(packing.num_rows):
            table = build_pack(packing, packed, split, progress.advance)
        name = f"{stored_in}/{split}/{INDEX}"
        if too_large(table, acceptance.max_pixels).size:  # packed by an earlier version, which accepted more
            name = _make_index(packed, split, find_pack(packed, split), None, cache_dir, progress, acceptance)
    elif kind is COMPRESSED:
        with progress.of(sum(file.num_bytes for file in containers)):
            plain = decompress(place, containers, cache_dir, progress.advance)
        stored_in, tars = Path(plain.root).name, plain_files(plain, containers)
        name = _make_index(plain, split, tars, list_tars(plain, split, tars, place), cache_dir, progress, acceptance)
    else:
        listing = None if kind.list is None else kind.list(place, split, containers)
        name = _make_index(place, split, containers, listing, cache_dir, progress, acceptance)
    return _Latest(
        kind=kind.name,
        index=name,
        stored_in=stored_in,
        acceptance=acceptance,
        version=_VERSION,
        traces=take_traces(containers, listing),
    )


def _make_index(
    place: Place,
    split: str,
    containers: Containers,
    listing: Listing | None,
    cache_dir: Path,
    progress: IndexProgress,
    acceptance: Acceptance,
) -> str:
    """Build the index of a listing, or find the one that was built for such a listing; return its name.

    listing: None for a pack, which has an index of its own.
    """
    name = f"index-{_listing_digest(place, split, containers, listing, acceptance)[:32]}.arrow"
    if _read(cache_dir / name) is None:
        if listing is None:
            table = accepted_of_pack(place, read_pack(place, split), progress, acceptance)
        else:
            table = describe(place, listing, progress, acceptance)
        _write(cache_dir / name, table)
    return name


def _listing_digest(
    place: Place, split: str, containers: Containers, listing: Listing | None, acceptance: Acceptance
) -> str:
    """Return a digest of all that an index is a function of, as far as a listing shows it.

    The root is part of it: files of other folders may agree in name, size and time, as those of an archive without
    times do. So is when a file changed in any way: two may have changed places. chmod alters that time, too,
    and not the number of an inode; but some mounts of object stores number their files anew each time.
    """
    start = f"{_VERSION} {split}" + json.dumps([place.root, containers_of(containers)])
    if acceptance != USUAL:
        start += json.dumps([acceptance.on_broken, *acceptance.key])
    if listing is None:
        return hashlib.sha256(start.encode()).hexdigest()
    columns = ("num_bytes", "mtime_ns", "ctime_ns", "file", "offset")
    return digest_rows(start, listing.table, [name for name in columns if name in listing.table.column_names])


def _read(path: Path) -> pa.Table | None:
    """Return the table of an index, memory-mapped; None where it is not there or cut off."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _write(path: Path, table: pa.Table) -> None:
    """Write the table as one record batch."""

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_whole(path, write)

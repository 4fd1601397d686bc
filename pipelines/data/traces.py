"""What is cheap to look at in order to know whether a listing is still good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kdcore.errors import Refused
from pipelines.data.listing import Listing
from pipelines.places import Found
from pipelines.spread import evenly_spread

_MAX_FILES = 1000  # of single files, evenly spread


class Traces(BaseModel):
    """What was seen of a split when it was listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    containers: tuple[tuple[str, int, int], ...] = ()
    """The files that hold it: name, bytes, and time of modification in nanoseconds."""

    folders: Mapping[str, int] = {}
    """The folders of single files, with the time of modification of each in nanoseconds."""

    files: Mapping[str, tuple[int, int]] = {}
    """Some of the single files: bytes, and time of modification in nanoseconds."""


def containers_of(found: tuple[Found, ...]) -> tuple[tuple[str, int, int], ...]:
    """Return files as `Traces.containers` has them."""
    return tuple((file.name, file.num_bytes, file.mtime_ns) for file in found)


def take_traces(found: tuple[Found, ...], listing: Listing | None) -> Traces:
    """Return the traces of a split: of its containers, and of the single files in its listing."""
    if listing is None or "mtime_ns" not in listing.table.column_names:
        return Traces(containers=containers_of(found))
    rows = evenly_spread(len(listing.table), _MAX_FILES)
    some = listing.table.take(rows)
    names = some["location" if "location" in some.column_names else "path"].to_pylist()
    facts = zip(some["num_bytes"].to_pylist(), some["mtime_ns"].to_pylist(), strict=True)
    return Traces(containers=containers_of(found), folders=listing.folders, files=dict(zip(names, facts, strict=True)))


def look_again(root: str, traces: Traces) -> bool:
    """Return whether the folders and files of these traces are as they were."""
    try:
        folders = all((Path(root) / name).stat().st_mtime_ns == time for name, time in traces.folders.items())
        return folders and all(_size_and_time(Path(root) / name) == seen for name, seen in traces.files.items())
    except OSError:
        return False


@contextmanager
def doubting(mark: Path | None) -> Iterator[None]:
    """Leave a mark where the body refuses an image, so that the next command lists every file again.

    Else it would find the few files that it looks at as they were, and refuse a repaired image for ever. mark: a file
    next to the index; None: there is no index.
    """
    try:
        yield
    except Refused:
        if mark is not None:
            with suppress(OSError):  # the folder of indexes may be read-only here
                mark.touch()
        raise


def _size_and_time(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns

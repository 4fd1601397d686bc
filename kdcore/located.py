"""Files that a recipe names by a path, or by a URI, which code that knows object stores has to fetch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from kdcore.errors import Refused, shortened

LFS_POINTER = b"version https://git-lfs"  # as a pointer begins
Fetch = Callable[[str], Path]
_fetch: list[Fetch] = []


def fetch_uris_by(fetch: Fetch) -> None:
    """Register the function that fetches URIs: it returns a local copy's path; Refused if it cannot fetch the file."""
    _fetch[:] = [fetch]


def is_uri(location: str) -> bool:
    """Return whether a location is a URI (s3://bucket/file) rather than a path."""
    return "://" in location


def absolute_location(location: str, base: Path) -> str:
    """Return a location as every process finds it: a URI as it is; a path absolute from `base`, `~` expanded."""
    if is_uri(location):
        return location
    try:
        return str((base / Path(location).expanduser()).absolute())
    except RuntimeError as error:
        raise Refused(f"{shortened(location)}: there is no such user's home; write the path out") from error


@cache
def local_file(location: str) -> Path:
    """Return the path of a file, for a URI that of its local copy; fetched once per process."""
    if not is_uri(location):
        return Path(location)
    if not _fetch:
        raise Refused(f"{location} is a URI, and nothing here fetches files; give a path")
    return _fetch[0](location)


def refuse_pointer(start: bytes, name: str) -> None:
    """Refuse a file that begins as the pointers do which Git leaves in the place of files of Git LFS."""
    if start.startswith(LFS_POINTER):
        raise Refused(
            f"{name} is a Git LFS pointer, not the file that it stands for; fetch that with `git lfs pull` in its "
            "repository"
        )

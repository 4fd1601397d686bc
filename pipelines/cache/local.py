"""A cache in object storage, copied once to each machine that reads it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from pipelines.cache.manifest import MANIFEST, read_manifest


def is_remote(location: str) -> bool:
    """Whether it is a URI (s3://bucket/path, gs://..., hdfs://..., file:///path), not a folder."""
    return "://" in location


def local_folder(location: str, copies_dir: str | None = None) -> Path:
    """The folder to read a cache from: itself, or for a URI this machine's copy of it.

    The copy is made by the first process that asks, while the others wait, and is named by the manifest's digest: a
    cache that was built anew is copied anew. copies_dir: where copies lie; by default the machine's temporary folder.
    """
    if not is_remote(location):
        return Path(location)
    filesystem, path = _filesystem(location)
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as file:
            manifest = read_manifest(file.read(), location)
    except FileNotFoundError as error:
        raise ValueError(f"{location} holds no {MANIFEST}: no cache, or one that is not finished") from error
    root = Path(copies_dir or Path(tempfile.gettempdir()) / "stillhouse-caches")
    root.mkdir(parents=True, exist_ok=True)
    copy = root / manifest.digest
    with locked(root / f"{manifest.digest}.lock"):
        if not copy.exists():
            partial = root / f"{manifest.digest}.{uuid4().hex}.tmp"
            fs.copy_files(path, str(partial), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
            partial.rename(copy)
    return copy


def _filesystem(location: str) -> tuple[fs.FileSystem, str]:
    try:
        filesystem, path = fs.FileSystem.from_uri(location.rstrip("/"))
    except (ValueError, OSError) as error:  # pyarrow's own errors are among these
        raise ValueError(f"cache.dir={location}: {error}; give a folder, or a URI that pyarrow.fs knows") from error
    return filesystem, path


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock file; the system gives it back when the process ends, however it ends. BlockingIOError where another
    process holds it and wait is false."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield

"""A cache in object storage: put there when it is finished, copied once to each machine that reads it."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from kdcore.errors import Refused
from pipelines.cache.manifest import CONSTANTS, MANIFEST, Manifest, load_manifest, read_manifest
from pipelines.cache.reader import refuse_damaged
from pipelines.files import make_folder
from pipelines.places import filesystem_of, is_remote


def local_folder(location: str, copies_dir: str | None = None) -> Path:
    """Return the folder to read a cache from: itself, or for a URI this machine's copy of it.

    The copy is made by the first process that asks, while the others wait, and is named by the manifest's digest: a
    cache that was built anew is copied anew. copies_dir: where copies lie; by default the machine's temporary folder.
    """
    if not is_remote(location):
        return Path(location)
    filesystem, path = filesystem_of(location, "cache.dir")
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as file:
            manifest = read_manifest(file.read(), location)
    except FileNotFoundError as error:
        raise Refused(f"{location} holds no {MANIFEST}: no cache, or one that is not finished") from error
    root = Path(copies_dir or Path(tempfile.gettempdir()) / "stillhouse-caches")
    make_folder(root, "cache.copies_dir")
    copy = root / manifest.digest
    with locked(root / f"{manifest.digest}.lock"):
        if not copy.exists():
            partial = root / f"{manifest.digest}.{uuid4().hex}.tmp"
            fs.copy_files(path, str(partial), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())
            partial.rename(copy)
    return copy


def publish(directory: Path, location: str) -> Manifest:
    """Copy a finished cache to a URI or folder, the manifest last: who reads there finds all of it or no cache.

    Refused where another cache is there. Cut off, it is done again from the start.
    """
    manifest = load_manifest(directory)
    refuse_damaged(directory, list(manifest.shards), full=False)
    filesystem, path = filesystem_of(
        location if is_remote(location) else Path(location).absolute().as_uri(), "cache.dir"
    )
    if filesystem.get_file_info(f"{path}/{MANIFEST}").type != fs.FileType.NotFound:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as file:
            if read_manifest(file.read(), location).digest == manifest.digest:
                return manifest
        raise Refused(f"{location} holds another cache; take another place, or remove that one")
    names = [CONSTANTS, *(shard.unit.path for shard in manifest.shards)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: _put(directory / name, filesystem, f"{path}/{name}"), names))
    _put(directory / MANIFEST, filesystem, f"{path}/{MANIFEST}")
    return manifest


def _put(source: Path, filesystem: fs.FileSystem, target: str) -> None:
    filesystem.create_dir(target.rpartition("/")[0], recursive=True)
    fs.copy_files(
        str(source),
        target,
        source_filesystem=fs.LocalFileSystem(),
        destination_filesystem=filesystem,
        use_threads=False,
    )


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock file; the system gives it back when the process ends, however it ends.

    BlockingIOError where another process holds it and wait is false.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield

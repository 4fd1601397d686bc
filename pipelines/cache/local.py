"""A cache in object storage: put there when it is finished, copied once to each machine that reads it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from uuid import uuid4

from pyarrow import fs

from kdcore.errors import Refused, RunFailed, one_line
from kdcore.located import is_uri
from pipelines.cache.building import read_plan
from pipelines.cache.manifest import CONSTANTS, MANIFEST, Manifest, load_manifest, read_manifest
from pipelines.cache.reader import refuse_damaged
from pipelines.cache.store import REMEDY, checksum, damage
from pipelines.files import FULL, is_lasting, locked, make_folder, not_written, own_temporary_folder
from pipelines.leases import leased
from pipelines.places import Place


def local_folder(location: str, copies_dir: str | None = None) -> Path:
    """Return the folder to read a cache from: itself, or for a URI this machine's copy of it.

    The copy is made by the first process that asks, while the others wait, and is named by the manifest's digest: a
    cache that was rebuilt is copied again, and so is one whose copy lacks something. copies_dir: where copies are; by
    default in the machine's temporary folder. Refused where its disk has no room for one.
    """
    if not is_uri(location):
        return Path(location)
    place = Place.of(location, "cache.dir")
    if not place.has(MANIFEST):
        raise Refused(f"{place.root} holds no {MANIFEST}: no such place, no cache, or one that is not finished")
    content = place.read(MANIFEST)
    manifest = read_manifest(content, place.root)
    root = Path(copies_dir) if copies_dir else own_temporary_folder("stillhouse-caches")
    make_folder(root, "cache.copies_dir")
    copy = root / manifest.digest
    with _refusing(root), locked(root / f"{manifest.digest}.lock"):
        for partial in root.glob(f"{manifest.digest}.*.tmp"):  # of a process that was killed
            shutil.rmtree(partial, ignore_errors=True)
        if _lacks(copy, manifest, content) is not None:
            shutil.rmtree(copy, ignore_errors=True)
            partial = root / f"{manifest.digest}.{uuid4().hex}.tmp"
            try:
                _fetch(place, manifest, content, partial)
                partial.rename(copy)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return copy


def _fetch(place: Place, manifest: Manifest, content: bytes, folder: Path) -> None:
    """Copy a cache's files, those that its manifest names and no others; Refused where they are not what it says.

    content: the manifest as it is stored.
    """
    needed, free = manifest.num_bytes, shutil.disk_usage(folder.parent).free
    if free < needed:
        raise Refused(
            f"cache.copies_dir: a copy of {place.root} takes {needed:,} bytes, and {folder.parent} has {free:,} free; "
            "free some, or name a larger disk as cache.copies_dir"
        )
    names = [CONSTANTS, *(shard.unit.path for shard in manifest.shards)]
    for name in {str(Path(name).parent) for name in names}:
        (folder / name).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: _take(place, name, folder / name), names))
    (folder / MANIFEST).write_bytes(content)
    if problem := _lacks(folder, manifest, content, full=True):
        raise Refused(f"the cache is damaged: {problem.replace(str(folder), place.root)}; {REMEDY}")


def _take(place: Place, name: str, target: Path) -> None:
    """Copy a file of a cache; OSError where the target's disk is full."""
    try:
        fs.copy_files(
            f"{place.path}/{name}",
            str(target),
            source_filesystem=place.filesystem,
            destination_filesystem=fs.LocalFileSystem(),
            use_threads=False,
        )
    except FileNotFoundError as error:
        raise Refused(f"the cache is damaged: {place.name_of(name)} is missing; {REMEDY}") from error
    except OSError as error:
        if error.errno in FULL:
            raise
        raise RunFailed(
            f"{place.name_of(name)} cannot be copied ({one_line(error)}); run the same command again"
        ) from error


def _lacks(copy: Path, manifest: Manifest, content: bytes, full: bool = False) -> str | None:
    """Return what is wrong with a copy, or None. Its shards' content is checked when read, and here if `full`.

    content: the manifest as it is stored.
    """
    constants = copy / CONSTANTS
    if not constants.is_file() or checksum(constants) != manifest.constants:
        return f"{constants} is missing, or not the one that was written"
    if not (copy / MANIFEST).is_file() or (copy / MANIFEST).read_bytes() != content:
        return f"{copy / MANIFEST} is missing, damaged, or another's"
    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda shard: damage(copy, shard, full), manifest.shards)
        return next((problem for problem in found if problem is not None), None)


@contextmanager
def _refusing(root: Path) -> Iterator[None]:
    """Turn a disk that is full, or may not be written to, into a Refused that names the setting."""
    try:
        yield
    except OSError as error:
        is_local = error.errno in FULL or error.filename is not None  # those of a store name no file
        if not (is_local and is_lasting(error)):
            raise
        raise Refused(f"cache.copies_dir: {not_written(root, error)}") from error


def publish(directory: Path, location: str) -> Manifest:
    """Copy a finished cache to a URI or folder, the manifest last: readers find all of it or no cache.

    Refused where another cache is there, or is being built there. If interrupted, it is done again from the start.
    """
    manifest = load_manifest(directory)
    refuse_damaged(directory, list(manifest.shards), full=False)
    place = Place.of(location, "cache.dir")
    with leased(Path(place.path), "cache copy") if place.is_local else nullcontext():
        return _put(directory, manifest, place)


def _put(directory: Path, manifest: Manifest, place: Place) -> Manifest:
    there = _manifest_at(place)
    if there is not None:
        if there.digest != manifest.digest:
            raise Refused(f"{place.root} holds another cache; take another place, or remove that one")
        return manifest
    begun = read_plan(Path(place.path)) if place.is_local else None
    if begun is not None and begun.without_views() != manifest.plan.without_views():
        raise Refused(f"{place.root} holds another cache, not finished; take another place, or remove that one")
    names = [CONSTANTS, *(shard.unit.path for shard in manifest.shards)]
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: place.put(directory / name, name), names))
    place.put(directory / MANIFEST, MANIFEST)
    return manifest


def _manifest_at(place: Place) -> Manifest | None:
    """Return a place's manifest; None if there is none, or one whose writing was cut off."""
    if not place.has(MANIFEST):
        return None
    content = place.read(MANIFEST)
    try:
        json.loads(content)
    except ValueError:
        return None
    return read_manifest(content, place.root)

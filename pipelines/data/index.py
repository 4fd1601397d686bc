"""The index of a source: every image looked at once, kept as an Arrow file and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress

from kdcore.errors import Refused
from pipelines.data.folder import list_files
from pipelines.data.images import inspect_image, refusing_broken
from pipelines.data.source import Source, digest_rows, source_table
from pipelines.files import write_whole

_VERSION = 1  # of the name of an index of a folder
_READ_AT_ONCE = 4096  # files in flight: bounds the memory of a build, whatever the size of the folder


def build_index(root: str | Path, split: str, cache_dir: str | Path, progress: bool | None = None) -> Source:
    """Return the images of root/split, their index read from cache_dir where nothing changed, else built there.

    A folder is unchanged where every file's path, size and time of modification are. Building reads every file once, in
    parallel. progress: show a bar; None: on a terminal. Refused for whatever is not a folder of folders of images.
    """
    root = Path(root).resolve()
    classes, files = list_files(root, split)
    name = f"index-{digest_rows(f'{_VERSION} {split}', files, ('num_bytes', 'mtime_ns'))[:32]}.arrow"
    cached = Path(cache_dir) / name
    if not cached.exists():
        _write(cached, _describe(root, classes, files, progress))
    write_whole(_pointer(root, split, cache_dir), name.encode())
    return _open(root, cached)


def open_index(root: str | Path, split: str, cache_dir: str | Path) -> Source:
    """Return the images whose index `build_index` has made or found last, without a look at where they lie.

    For the workers of a run, whose driver has just looked: listing a folder of 14 million files takes minutes, on every
    one of them. Refused where there is no such index.
    """
    root = Path(root).resolve()
    pointer = _pointer(root, split, cache_dir)
    if not pointer.exists():
        raise Refused(f"there is no index of {root / split} in {cache_dir}; that folder must be one all nodes see")
    return _open(root, Path(cache_dir) / pointer.read_text())


def _pointer(root: Path, split: str, cache_dir: str | Path) -> Path:
    """Return the file that names the index last made or found."""
    return Path(cache_dir) / f"latest-{hashlib.sha256(str(root / split).encode()).hexdigest()[:16]}"


def _open(root: Path, cached: Path) -> Source:
    table = pa.ipc.open_file(pa.memory_map(str(cached))).read_all()
    return Source(str(root), tuple(json.loads(table.schema.metadata[b"classes"])), table)


def _describe(root: Path, classes: tuple[str, ...], files: pa.Table, progress: bool | None) -> pa.Table:
    """Return the table of an index, with its classes and fingerprint as metadata."""
    facts = np.empty((len(files), 3), dtype=np.int64)
    wrong: list[str] = []
    console = Console(stderr=True)
    show = console.is_terminal if progress is None else progress
    with Progress(console=console, transient=True, disable=not show) as bar, ThreadPoolExecutor() as threads:
        task = bar.add_task(f"indexing {root.name}", total=len(files))
        for start in range(0, len(files), _READ_AT_ONCE):
            paths = files["path"].slice(start, _READ_AT_ONCE).to_pylist()
            futures = [threads.submit(_inspect_file, root / path) for path in paths]
            for row, future in enumerate(futures, start):
                try:
                    facts[row] = future.result()
                except Refused as error:
                    wrong.append(str(error))
                bar.advance(task)
    if wrong:
        raise Refused(wrong[0] + (f"; likewise for {len(wrong) - 1} more files" if len(wrong) > 1 else ""))
    return source_table(classes, files, facts)


def _inspect_file(path: Path) -> tuple[int, int, int]:
    with refusing_broken(str(path)):
        content = path.read_bytes()
    return inspect_image(content, str(path))


def _write(path: Path, table: pa.Table) -> None:
    """Write the table as one record batch."""

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_whole(path, write)

"""Image folders: root/<split>/<class>/files, indexed once, kept as an Arrow file and read memory-mapped.

A sample's id is its row in the index: classes in order of name, files in order of path within their class. Hidden files
and folders (a leading dot) do not exist. A picture's height and width are those stored, before any EXIF rotation:
nothing here rotates, as torchvision's ImageFolder does not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from kdcore.errors import Refused
from pipelines.data.folder import inspect_file, list_files
from pipelines.files import write_whole
from pipelines.views.draws import Stream
from pipelines.views.order import permutation

_VERSION = 1
_READ_AT_ONCE = 4096  # files in flight: bounds the memory of a build, whatever the size of the folder


@dataclass(frozen=True)
class ImageIndex:
    """What is known of every sample of a split, without opening a file. Columns are numpy arrays of one row a sample.

    root: the data set's folder; classes: their names in order of label; table: path (relative to root), label, height,
    width (pixels), num_bytes, crc32.
    """

    root: Path
    classes: tuple[str, ...]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        return self._column("label")

    @cached_property
    def heights(self) -> NDArray[np.int32]:
        return self._column("height")

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        return self._column("width")

    def paths(self, ids: NDArray[np.int64]) -> list[str]:
        """The files of the given samples."""
        relative = self.table["path"].chunk(0).take(pa.array(ids)).to_pylist()
        return [str(self.root / path) for path in relative]

    def subset(self, ids: NDArray[np.int64]) -> ImageIndex:
        """The given samples as an index of their own, renumbered from 0 in the given order."""
        table = self.table.take(pa.array(ids)).combine_chunks()
        return ImageIndex(self.root, self.classes, table.replace_schema_metadata(None))

    def split(self, fraction: float, seed: int) -> tuple[ImageIndex, ImageIndex]:
        """(the rest, a held-out slice): `fraction` of every class, rounded, chosen by the seed; ids stay in order.

        Refused where a class would be missing on either side.
        """
        order = np.lexsort((permutation(len(self), seed, 0, Stream.HELD_OUT)(np.arange(len(self))), self.labels))
        counts = np.bincount(self.labels, minlength=len(self.classes))
        num_held = np.rint(fraction * counts).astype(np.int64)
        short = np.flatnonzero((num_held < 1) | (num_held >= counts))
        if short.size:
            name, count = self.classes[short[0]], counts[short[0]]
            raise Refused(
                f"holding out {fraction} of class {name!r} ({count} images in {self.root}) leaves it without images on "
                f"one side; choose a fraction that takes at least 1 and at most {count - 1} of them"
            )
        rank = np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts)
        held = rank < np.repeat(num_held, counts)
        return self.subset(np.sort(order[~held])), self.subset(np.sort(order[held]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names and each sample's path, label, height, width, size and checksum.

        The same wherever the folder lies and whenever its files were written.
        """
        stored = (self.table.schema.metadata or {}).get(b"fingerprint")
        return stored.decode() if stored else _fingerprint(self.classes, self.table)

    def _column(self, name: str) -> NDArray[np.int32]:
        column: NDArray[np.int32] = self.table[name].chunk(0).to_numpy(zero_copy_only=True)
        return column


def check_same_classes(train: ImageIndex, validation: ImageIndex) -> None:
    """Refused where two splits do not have the same classes: their labels would mean different things."""
    missing = sorted(set(train.classes) - set(validation.classes))
    surplus = sorted(set(validation.classes) - set(train.classes))
    if missing or surplus:
        first, where = (missing[0], "training") if missing else (surplus[0], "validation")
        raise Refused(
            f"the splits in {train.root} and {validation.root} differ in {len(missing) + len(surplus)} class folders; "
            f"the first, {first!r}, is in the {where} split only: add it to the other, or remove it"
        )


def build_index(root: str | Path, split: str, cache_dir: str | Path, progress: bool | None = None) -> ImageIndex:
    """The index of root/split; read from cache_dir where the folder is unchanged, else built there.

    A folder is unchanged where every file's path, size and time of modification are. Building reads every file once, in
    parallel. progress: show a bar; None: on a terminal. Refused for whatever is not a folder of folders of images.
    """
    root = Path(root).resolve()
    classes, files = list_files(root, split)
    name = f"index-{_digest(f'{_VERSION} {split}', files, ('num_bytes', 'mtime_ns'))[:32]}.arrow"
    cached = Path(cache_dir) / name
    if not cached.exists():
        _write(cached, _describe(root, classes, files, progress))
    write_whole(_pointer(root, split, cache_dir), name.encode())
    return _open(root, classes, cached)


def open_index(root: str | Path, split: str, cache_dir: str | Path) -> ImageIndex:
    """The index that `build_index` has made or found last, without a look at the folder: for the workers of a run,
    whose driver has just looked. Listing a folder of 14 million files takes minutes, on every one of them."""
    root = Path(root).resolve()
    pointer = _pointer(root, split, cache_dir)
    if not pointer.exists():
        raise Refused(f"there is no index of {root / split} in {cache_dir}; that folder must be one all nodes see")
    cached = Path(cache_dir) / pointer.read_text()
    with pa.memory_map(str(cached)) as file:
        classes = json.loads(pa.ipc.open_file(file).schema.metadata[b"classes"])
    return _open(root, tuple(classes), cached)


def _pointer(root: Path, split: str, cache_dir: str | Path) -> Path:
    """The file that names the index last made or found."""
    return Path(cache_dir) / f"latest-{hashlib.sha256(str(root / split).encode()).hexdigest()[:16]}"


def _open(root: Path, classes: tuple[str, ...], cached: Path) -> ImageIndex:
    return ImageIndex(root, classes, pa.ipc.open_file(pa.memory_map(str(cached))).read_all())


def _describe(root: Path, classes: tuple[str, ...], files: pa.Table, progress: bool | None) -> pa.Table:
    """The table of an index, with its classes and fingerprint as metadata."""
    facts = np.empty((len(files), 3), dtype=np.int64)
    wrong: list[str] = []
    console = Console(stderr=True)
    show = console.is_terminal if progress is None else progress
    with Progress(console=console, transient=True, disable=not show) as bar, ThreadPoolExecutor() as threads:
        task = bar.add_task(f"indexing {root.name}", total=len(files))
        for start in range(0, len(files), _READ_AT_ONCE):
            paths = files["path"].slice(start, _READ_AT_ONCE).to_pylist()
            futures = [threads.submit(inspect_file, root / path) for path in paths]
            for row, future in enumerate(futures, start):
                try:
                    facts[row] = future.result()
                except Refused as error:
                    wrong.append(str(error))
                bar.advance(task)
    if wrong:
        raise Refused(wrong[0] + (f"; likewise for {len(wrong) - 1} more files" if len(wrong) > 1 else ""))
    return index_table(classes, files, facts)


def index_table(classes: tuple[str, ...], files: pa.Table, facts: NDArray[np.int64]) -> pa.Table:
    """The table of an `ImageIndex`. files: path, label, num_bytes; facts [N,3]: height, width, crc32."""
    columns = {
        "path": files["path"],
        "label": files["label"],
        "height": facts[:, 0].astype(np.int32),
        "width": facts[:, 1].astype(np.int32),
        "num_bytes": files["num_bytes"],
        "crc32": facts[:, 2].astype(np.uint32),
    }
    table = pa.table(columns)
    metadata = {"classes": json.dumps(classes), "fingerprint": _fingerprint(classes, table)}
    return table.replace_schema_metadata(metadata)


def _fingerprint(classes: tuple[str, ...], table: pa.Table) -> str:
    return _digest(json.dumps([_VERSION, classes]), table, ("label", "height", "width", "num_bytes", "crc32"))


def _digest(start: str, table: pa.Table, numbers: Sequence[str]) -> str:
    """SHA-256 of a text, a table's paths and these columns of numbers; of the buffers, no value becomes an object."""
    digest = hashlib.sha256(start.encode())
    paths = table["path"].chunk(0)
    _, offsets, text = paths.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[paths.offset : paths.offset + len(paths) + 1]
    digest.update(np.diff(ends).astype("<i8").tobytes())
    digest.update(memoryview(text)[ends[0] : ends[-1]])
    for name in numbers:
        digest.update(table[name].chunk(0).to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()


def _write(path: Path, table: pa.Table) -> None:
    """The table as one record batch."""

    def write(file: BinaryIO) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_whole(path, write)

"""Shards on disk: each written whole or not at all, with a note of what it is; found again by listing.

    <part>/view-00000/rows-000000000000-000000016384.arrow   rows of one view, row = sample id, one record batch
    <part>/view-00000/rows-000000000000-000000016384.json    its note: size, checksum, and the key of the build

A part is a split of the data with its views: `train`, and the splits that a run is judged on. The key says what the
numbers are a function of; a note with another key, or a file that is not what its note says, counts as absent. So a
build that was killed at any point goes on with what is missing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdcore.errors import Refused, RunFailed, one_line
from pipelines.files import write_whole
from pipelines.vectors import to_numpy

REMEDY = "restore the file, or run `python -m ops cache build`, which recomputes what is damaged or missing"
_NAME_OF_COPY = re.compile(r"[0-9a-f]{64}")  # its manifest's digest, see `local.local_folder`
_FILE_OF_SHARD = re.compile(r"rows-\d+-\d+\.(arrow|json)")
Rows = Mapping[str, NDArray[np.generic]]  # {field: [rows,width]}


@dataclass(frozen=True, order=True)
class Unit:
    """A piece of work, and the shard it gives: the rows from start to stop of one view of a part."""

    part: str
    view: int
    start: int
    stop: int

    @property
    def path(self) -> str:
        """The shard's path within the cache."""
        return f"{self.part}/view-{self.view:05d}/rows-{self.start:012d}-{self.stop:012d}.arrow"

    @property
    def note(self) -> str:
        return self.path.removesuffix(".arrow") + ".json"


# The name of a folder within the cache: never a way out of it.
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]


class Shard(BaseModel):
    """A finished shard, as the manifest lists it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: PartName
    view: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)
    num_bytes: int = Field(ge=0)
    sha256: str

    @property
    def unit(self) -> Unit:
        return Unit(self.part, self.view, self.start, self.stop)


class Note(BaseModel):
    """The note next to a shard, written while the cache is being built; it stays there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    shard: Shard


def units_of(part: str, num_rows: int, num_views: int, rows_per_shard: int) -> list[Unit]:
    """Return the units of a part, view by view."""
    return [
        Unit(part, view, start, min(start + rows_per_shard, num_rows))
        for view in range(num_views)
        for start in range(0, num_rows, rows_per_shard)
    ]


def write_shard(directory: Path, unit: Unit, rows: Rows, key: str) -> Shard:
    """Write the shard, then its note."""
    content = arrow_file(rows)
    write_whole(directory / unit.path, content)
    shard = Shard(
        part=unit.part,
        view=unit.view,
        start=unit.start,
        stop=unit.stop,
        num_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    write_note(directory, shard, key)
    return shard


def write_note(directory: Path, shard: Shard, key: str) -> None:
    """Write the note next to a shard: from now on it counts for builds of this key."""
    write_whole(directory / shard.unit.note, Note(key=key, shard=shard).model_dump_json(indent=1).encode())


def arrow_file(rows: Rows) -> memoryview:
    """Return an Arrow file of one uncompressed record batch with a fixed-size list per field."""
    arrays = [_fixed_size_lists(values) for values in rows.values()]
    batch = pa.record_batch(arrays, names=list(rows))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return memoryview(sink.getvalue())


def _fixed_size_lists(values: NDArray[np.generic]) -> pa.Array:
    flat = np.ascontiguousarray(values).reshape(-1)
    numbers = pa.Array.from_buffers(pa.from_numpy_dtype(flat.dtype), flat.size, [None, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(numbers, values.shape[1])


def map_shard(directory: Path, shard: Shard, fields: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[np.generic]]:
    """Return {field: [rows,width]} of a shard, memory-mapped, nothing read yet.

    fields: {name: (type, width)}. Refused for a file that does not have these fields in as many rows as the shard.
    RunFailed where the process can map no more.
    """
    path = directory / shard.unit.path
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as file:
            batch = file.get_batch(0)
        batch.validate()  # that its buffers are as long as it says
        mapped = {name: _matrix(batch.column(name), len(batch)) for name in fields}
    except OSError as error:
        raise _not_mapped(path, error) from error
    except (pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise Refused(f"{path} is not a shard of a cache ({one_line(error, 100)}); {REMEDY}") from error
    for name, (dtype, width) in fields.items():
        found, rows = mapped[name], shard.stop - shard.start
        if found.shape != (rows, width) or found.dtype != np.dtype(dtype):
            raise Refused(
                f"{path}: {name} is {list(found.shape)} of {found.dtype}, not {[rows, width]} of {dtype} as the "
                f"manifest says; {REMEDY}"
            )
    return mapped


def _not_mapped(path: Path, error: OSError) -> Refused | RunFailed:
    """Return the error for a file that cannot be mapped: a limit that is reached is not the file's fault."""
    if error.errno == errno.ENOMEM:
        return RunFailed(
            f"{path} cannot be mapped into memory ({os.strerror(error.errno)}): the process is out of memory, or has "
            "reached the limit of memory mappings, one per shard; raise vm.max_map_count (sysctl), or add memory"
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return RunFailed(
            f"{path} cannot be opened ({os.strerror(error.errno)}); raise the limit of open files (ulimit -n)"
        )
    return Refused(f"{path} is not a shard of a cache ({one_line(error, 100)}); {REMEDY}")


def _matrix(array: pa.FixedSizeListArray, num_rows: int) -> NDArray[np.generic]:
    """Return the numbers of lists of one length: [rows,width]."""
    values: NDArray[np.generic] = to_numpy(array.flatten())
    return values.reshape(num_rows, array.type.list_size)


def finished_shards(directory: Path, units: Iterable[Unit], key: str) -> Iterator[Shard]:
    """Yield the shards that are there, whole and of this key."""
    with ThreadPoolExecutor() as threads:
        for shard in threads.map(lambda unit: _finished(directory, unit, key), units):
            if shard is not None:
                yield shard


def _finished(directory: Path, unit: Unit, key: str) -> Shard | None:
    try:
        note = Note.model_validate_json((directory / unit.note).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    whole = note.key == key and note.shard.unit == unit and damage(directory, note.shard) is None
    return note.shard if whole else None


def damage(directory: Path, shard: Shard, full: bool = True) -> str | None:
    """Return what is wrong with a shard's file, None for nothing. full: read it all; else compare only its size."""
    path = directory / shard.unit.path
    try:
        num_bytes = path.stat().st_size
    except FileNotFoundError:
        return f"{path} is missing"
    if num_bytes != shard.num_bytes:
        return f"{path} has {num_bytes} bytes, not {shard.num_bytes}"
    if full and checksum(path) != shard.sha256:
        return f"{path} has changed since it was written: its checksum differs"
    return None


def remedy_for(directory: Path) -> str:
    """Return what to do about a damaged shard: a machine's copy of a remote cache is not what is to be restored."""
    if _NAME_OF_COPY.fullmatch(directory.name):
        return f"remove {directory}, this machine's copy of the cache, which the next start makes again"
    return REMEDY


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_file_of_shard(name: str) -> bool:
    """Return whether a file of this name, within the folder of its view, is a shard or its note."""
    return _FILE_OF_SHARD.fullmatch(name) is not None

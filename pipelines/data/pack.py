"""This project's own pack: images in Arrow shards, each with a small Arrow file of facts, and one index.

    <split>/shard-00000.arrow         path, label(s), height, width, crc32 and the encoded image, one record batch
    <split>/shard-00000.facts.arrow   the same without the image, and where each image lies in the shard
    <split>/index.arrow               the facts of all in order of sample id: written last, it makes the pack whole

Shards are uncompressed, so that an image is an extent of a file, read without the rest. Facts are written after their
shard and carry its key, size and checksum: packing that was killed goes on with the shards that have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kdcore.errors import Refused
from pipelines.data.broken import Acceptance, check_broken, inspect_images
from pipelines.data.labels import COLUMN, TYPE
from pipelines.data.listing import in_order_of_id
from pipelines.data.source_table import source_table
from pipelines.places import Found, Place

INDEX = "index.arrow"
VERSION = 2  # 1 held images that the loaders do not decode alike
SHARD_BYTES = 256 * 2**20
_FILES = b"shards"  # key in the index's metadata
_FILE_OF_SHARD = re.compile(r"shard-\d+(\.facts)?\.arrow")


@dataclass(frozen=True)
class Sample:
    """An image on its way into a pack. path: <split>/<class>/<name>; origin: where it comes from, for an error.

    labels: the class numbers of an image that may have several; label is then 0.
    """

    path: str
    label: int
    content: bytes
    origin: str
    labels: tuple[int, ...] = ()


class Packing(Protocol):
    """Images to pack, cut into shards whose content is determined by their number."""

    @property
    def key(self) -> str:
        """A digest of all that the shards are a function of."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in order of label."""

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""

    @property
    def acceptance(self) -> Acceptance:
        """Which images are packed; all but `on_broken` is part of the key."""

    @property
    def num_shards(self) -> int:
        """The number of shards."""

    def samples(self, number: int) -> Iterable[Sample]:
        """Return the images of a shard."""


def find_pack(place: Place, split: str) -> tuple[Found, ...]:
    """Return the index and the shards of a pack of this split; empty if there is no index."""
    files = tuple(file for file in place.list_files(split) if file.name.endswith(".arrow"))
    return files if any(file.name == f"{split}/{INDEX}" for file in files) else ()


def read_pack(place: Place, split: str) -> pa.Table:
    """Return the table of a pack's split, as `pipelines.data.source.open_table` takes it.

    Refused where a shard is not there or not of the size that was written, and for an index of something else.
    """
    name = f"{split}/{INDEX}"
    try:
        table = pa.ipc.open_file(pa.py_buffer(place.read(name))).read_all().combine_chunks()
    except pa.ArrowInvalid as error:
        raise Refused(f"{place.name_of(name)} is not a whole index of a pack ({error}); pack again") from error
    version = int(_metadata(place, name, table.schema).get(b"version", b"0"))
    if version != VERSION:
        raise Refused(f"{place.name_of(name)} is a pack of version {version}, not {VERSION}; pack again")
    sizes = {file.name: file.num_bytes for file in place.list_files(split)}
    for shard, num_bytes in json.loads(table.schema.metadata[b"files"]):
        if sizes.get(shard) != num_bytes:
            found = f"has {sizes[shard]:,} bytes" if shard in sizes else "is not there"
            raise Refused(f"{place.name_of(shard)} {found}, and was packed with {num_bytes:,}; copy it or pack again")
    return table


def _metadata(place: Place, name: str, schema: pa.Schema) -> dict[bytes, bytes]:
    """Return the metadata of a pack's index; Refused for an Arrow file of something else."""
    found: dict[bytes, bytes] = schema.metadata or {}
    if not {b"classes", b"files"} <= found.keys():
        raise Refused(f"{place.name_of(name)} is an Arrow file, but not a pack's index; move it elsewhere")
    return found


def write_shard(place: Place, folder: str, packing: Packing, number: int) -> pa.Table:
    """Write a shard, then its facts; return the facts.

    Images that are broken are left out, and named in the facts.
    """
    samples = list(packing.samples(number))
    contents, origins = [sample.content for sample in samples], [sample.origin for sample in samples]
    found = inspect_images(contents, origins, packing.acceptance)
    del contents
    samples = [samples[row] for row in found.whole]
    facts = found.facts[found.whole]
    columns = {
        "path": pa.array([sample.path for sample in samples], type=pa.large_string()),
        "label": pa.array([sample.label for sample in samples], type=pa.int32()),
        **({COLUMN: pa.array([one.labels for one in samples], type=TYPE)} if packing.multi_label else {}),
        "height": facts[:, 0].astype(np.int32),
        "width": facts[:, 1].astype(np.int32),
        "num_bytes": pa.array([len(sample.content) for sample in samples], type=pa.int64()),
        "crc32": facts[:, 2].astype(np.uint32),
    }
    images = pa.array([sample.content for sample in samples], type=pa.large_binary())
    del samples  # as many bytes again
    content = arrow_file(pa.table({**columns, "image": images}))
    place.write(f"{folder}/{shard_name(number)}", content)
    about = {
        "key": packing.key,
        "num_bytes": content.size,
        "sha256": hashlib.sha256(content).hexdigest(),
        "broken": list(found.broken.values()),
    }
    table = pa.table({**columns, "offset": _offsets(content)}).replace_schema_metadata({"about": json.dumps(about)})
    place.write(f"{folder}/{facts_name(number)}", arrow_file(table))
    return table


def _offsets(content: pa.Buffer) -> pa.Array:
    """Return each image's offset within a shard: the buffers of its batch are parts of the file's."""
    reader = pa.ipc.open_file(content)
    if not reader.num_record_batches:
        return pa.array([], type=pa.int64())
    column = reader.get_batch(0).column("image")
    _, ends, images = column.buffers()
    starts = np.frombuffer(ends, dtype=np.int64)[: len(column)]
    return pa.array(starts + (images.address - content.address), type=pa.int64())


def finished_facts(place: Place, folder: str, packing: Packing) -> dict[int, pa.Table]:
    """Return {number: facts} of the shards that are there, of this packing and of the size that was written.

    Facts that are cut off or damaged do not count.
    """
    sizes = {file.name: file.num_bytes for file in place.list_files(folder)}
    finished = {}
    for number in range(packing.num_shards):
        name = f"{folder}/{facts_name(number)}"
        if name in sizes:
            try:
                facts = pa.ipc.open_file(pa.py_buffer(place.read(name))).read_all()
            except pa.ArrowInvalid:
                continue
            about = _about(facts)
            if about["key"] == packing.key and sizes.get(f"{folder}/{shard_name(number)}") == about["num_bytes"]:
                finished[number] = facts
    return finished


def remove_other_index(place: Place, folder: str, packing: Packing) -> None:
    """Remove the index of another packing: once its shards are partly overwritten, it would name other images.

    Refused for an Arrow file of this name that is not a pack's index: it is someone else's.
    """
    name = f"{folder}/{INDEX}"
    if not place.has(name):
        return
    try:
        with place.open(name) as file:
            key = _metadata(place, name, pa.ipc.open_file(file).schema).get(b"key", b"")
    except pa.ArrowInvalid:
        key = b""
    if key != packing.key.encode():
        place.remove(name)


def write_index(place: Place, folder: str, packing: Packing, facts: Sequence[pa.Table]) -> pa.Table:
    """Write the index of finished shards, which makes the pack whole; return it.

    facts: of every shard, in order. Refused where images are broken: see `check_broken`.
    """
    shards = [(f"{folder}/{shard_name(number)}", _about(table)) for number, table in enumerate(facts)]
    numbered = [
        table.replace_schema_metadata(None).append_column("file", pa.array(np.full(len(table), number, np.int32)))
        for number, table in enumerate(facts)
    ]
    broken = [message for _, about in shards for message in about["broken"]]
    table = in_order_of_id(pa.concat_tables(numbered))
    check_broken(broken, len(table) + len(broken), packing.acceptance.on_broken, place.root)
    table = source_table(packing.classes, table, [(name, about["num_bytes"]) for name, about in shards])
    more = {
        "version": str(VERSION),
        "key": packing.key,
        "broken": json.dumps(broken),
        _FILES: json.dumps([about["sha256"] for _, about in shards]),
    }
    table = table.replace_schema_metadata({**table.schema.metadata, **more})
    place.write(f"{folder}/{INDEX}", arrow_file(table))
    return table


def verify_shards(place: Place, table: pa.Table) -> None:
    """Read every byte of a pack; Refused, naming the shard, where one is not what was written."""
    files = json.loads(table.schema.metadata[b"files"])
    for (name, _), expected in zip(files, json.loads(table.schema.metadata[_FILES]), strict=True):
        digest = hashlib.sha256()
        with place.open(name) as file:
            while part := file.read(8 * 2**20):
                digest.update(part)
        if digest.hexdigest() != expected:
            raise Refused(f"{place.name_of(name)} has changed since it was packed; remove it and pack again")


def is_file_of_pack(name: str) -> bool:
    """Return whether a file of this name, within the folder of its split, is a shard, its facts or the index."""
    return name == INDEX or _FILE_OF_SHARD.fullmatch(name) is not None


def refuse_others(place: Place, split: str) -> None:
    """Refuse a folder for the pack of a split in which something else lies: neither could be read beside the other."""
    names = (file.name.removeprefix(f"{split}/") for file in place.list_files(split))
    strays = (name for name in names if not is_file_of_pack(name) and not name.endswith(".tmp"))  # of a killed write
    others = [*place.list_folders(split), *strays]
    if others:
        raise Refused(
            f"{place.name_of(f'{split}/{others[0]}')} is not of a pack, and nothing else may lie in its folder; give "
            "another place with -o, or move that away"
        )


def shard_name(number: int) -> str:
    """Return the name of a shard within its split."""
    return f"shard-{number:05d}.arrow"


def facts_name(number: int) -> str:
    """Return the name of a shard's facts within its split."""
    return f"shard-{number:05d}.facts.arrow"


def arrow_file(table: pa.Table) -> pa.Buffer:
    """Return a table as an Arrow file of one uncompressed record batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _about(facts: pa.Table) -> dict[str, Any]:
    """Return {key, num_bytes, sha256, broken} of the shard that these facts are of."""
    about: dict[str, Any] = json.loads(facts.schema.metadata[b"about"])
    return about

"""A source of images: what is known of every sample without reading it, and the encoded bytes of any of them.

Above a source a sample is an id, its row: classes in order of label, images in order of name within their class. What
kind of container the bytes lie in is `pipelines.data.storage`'s alone; it changes neither an id nor a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.images import decode_image
from pipelines.data.storage import Files, Storage
from pipelines.views.draws import Stream
from pipelines.views.order import permutation

_VERSION = 1  # of what a fingerprint covers


@dataclass(frozen=True)
class Source:
    """The images of one split.

    root: where they lie, in words for an error; classes: their names in order of label; table: one row a sample with
    path (<split>/<class>/<name>), label, height, width (pixels, as stored, before any EXIF rotation), num_bytes, crc32.
    """

    root: str
    classes: tuple[str, ...]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The class number of every sample [N]."""
        return self._column("label")

    @cached_property
    def heights(self) -> NDArray[np.int32]:
        """The height of every sample in pixels [N]."""
        return self._column("height")

    @cached_property
    def widths(self) -> NDArray[np.int32]:
        """The width of every sample in pixels [N]."""
        return self._column("width")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names and each sample's path, label, height, width, size and checksum.

        Of what the images are and are called: neither of where they lie, nor of what they are packed in.
        """
        stored = (self.table.schema.metadata or {}).get(b"fingerprint")
        return stored.decode() if stored else fingerprint(self.classes, self.table)

    @cached_property
    def _storage(self) -> Storage:
        return Files(self.root, self.table["path"].chunk(0), self.table["num_bytes"].chunk(0).to_numpy())

    def read(self, ids: NDArray[np.int64]) -> list[bytes]:
        """Return the encoded images of these samples, in this order; callable from any thread.

        Refused, with the name of the image, where one is no longer what was indexed.
        """
        return self._storage.read(ids)

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return where each of these samples lies, in words for an error: the file's path."""
        return self._storage.names(ids)

    def decode(self, sample_id: int, content: bytes) -> Image.Image:
        """Return the whole picture of a sample in RGB; Refused, with its name, where that cannot be."""
        (name,) = self.names(np.array([sample_id]))
        return decode_image(content, name, int(self.heights[sample_id]), int(self.widths[sample_id]))

    def subset(self, ids: NDArray[np.int64]) -> Source:
        """Return the given samples as a source of their own, renumbered from 0 in the given order."""
        table = self.table.take(pa.array(ids)).combine_chunks()
        return Source(self.root, self.classes, table.replace_schema_metadata(None))

    def split(self, fraction: float, seed: int) -> tuple[Source, Source]:
        """Return (the rest, a held-out slice): `fraction` of every class, rounded, chosen by the seed.

        Ids stay in order. Refused where a class would be missing on either side.
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

    def _column(self, name: str) -> NDArray[np.int32]:
        column: NDArray[np.int32] = self.table[name].chunk(0).to_numpy(zero_copy_only=True)
        return column


def check_same_classes(train: Source, validation: Source) -> None:
    """Refuse two splits that do not have the same classes: their labels would mean different things."""
    missing = sorted(set(train.classes) - set(validation.classes))
    surplus = sorted(set(validation.classes) - set(train.classes))
    if missing or surplus:
        first, where = (missing[0], "training") if missing else (surplus[0], "validation")
        raise Refused(
            f"the splits in {train.root} and {validation.root} differ in {len(missing) + len(surplus)} class folders; "
            f"the first, {first!r}, is in the {where} split only: add it to the other, or remove it"
        )


def source_table(classes: tuple[str, ...], files: pa.Table, facts: NDArray[np.int64]) -> pa.Table:
    """Return the table of a `Source`, with its classes and fingerprint as metadata.

    files: path, label, num_bytes; facts [N,3]: height, width, crc32.
    """
    columns = {
        "path": files["path"],
        "label": files["label"],
        "height": facts[:, 0].astype(np.int32),
        "width": facts[:, 1].astype(np.int32),
        "num_bytes": files["num_bytes"],
        "crc32": facts[:, 2].astype(np.uint32),
    }
    table = pa.table(columns)
    metadata = {"classes": json.dumps(classes), "fingerprint": fingerprint(classes, table)}
    return table.replace_schema_metadata(metadata)


def fingerprint(classes: tuple[str, ...], table: pa.Table) -> str:
    """Return the SHA-256 of what makes these images a data set: see `Source.fingerprint`."""
    return digest_rows(json.dumps([_VERSION, classes]), table, ("label", "height", "width", "num_bytes", "crc32"))


def digest_rows(start: str, table: pa.Table, numbers: Sequence[str]) -> str:
    """Return the SHA-256 of a text, a table's paths and its named columns of numbers.

    Of the buffers: no value becomes an object, so that 14 million rows take seconds.
    """
    digest = hashlib.sha256(start.encode())
    paths = table["path"].chunk(0)
    _, offsets, text = paths.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[paths.offset : paths.offset + len(paths) + 1]
    digest.update(np.diff(ends).astype("<i8").tobytes())
    digest.update(memoryview(text)[ends[0] : ends[-1]])
    for name in numbers:
        digest.update(table[name].chunk(0).to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()

"""Writing a pack: shards in threads of one process, leaving those that are there already as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from kdcore.errors import Refused
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.images import Encoded
from pipelines.data.pack import (
    SHARD_BYTES,
    VERSION,
    Packing,
    Sample,
    finished_facts,
    is_file_of_pack,
    remove_other_index,
    write_index,
    write_shard,
)
from pipelines.data.source import Source
from pipelines.files import make_folder, remove_unfinished
from pipelines.places import Place
from pipelines.vectors import to_arrow, to_numpy
from pipelines.views.order import permutation

_ORDER_STREAM = 0  # of the permutation that decides which images share a shard
_READ_AT_ONCE = 1024  # images: enough to keep an object store busy, and only a part of a shard
MAX_THREADS = 4  # each holds a shard three times over

Shards = Callable[[list[int]], Iterable[tuple[int, pa.Table]]]  # numbers -> (number, facts) as they are finished


def build_pack(
    packing: Packing,
    place: Place,
    folder: str,
    report: Callable[[int], object] = lambda images: None,
    write_shards: Shards | None = None,
) -> pa.Table:
    """Write the shards that are not there yet, then the index; return the index's table.

    report: called with the number of images of every shard that is done. write_shards: does the writing; by default
    threads of this process. The index of another packing there is removed first, and so are the half-written files
    of a killed process; therefore only one process at a time may do this.
    """
    if place.is_local:
        remove_unfinished(make_folder(Path(place.path) / folder, "the pack"), is_file_of_pack)
    remove_other_index(place, folder, packing)
    facts = finished_facts(place, folder, packing)
    for done in facts.values():
        report(len(done))
    missing = [number for number in range(packing.num_shards) if number not in facts]
    for number, table in (write_shards or _in_threads(packing, place, folder))(missing):
        facts[number] = table
        report(len(table))
    return write_index(place, folder, packing, [facts[number] for number in range(packing.num_shards)])


def _in_threads(packing: Packing, place: Place, folder: str) -> Shards:
    def write(numbers: list[int]) -> Iterable[tuple[int, pa.Table]]:
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
            yield from zip(
                numbers, threads.map(lambda number: write_shard(place, folder, packing, number), numbers), strict=True
            )

    return write


@dataclass(frozen=True)
class SourcePacking:
    """A source on its way into a pack, its images in a fixed random order, so that each shard is a sample of them all.

    max_side, quality: where given, images whose longer side is larger are made smaller, and all are stored as JPEG.
    """

    source: Source
    shard_bytes: int = SHARD_BYTES
    max_side: int | None = None
    quality: int | None = None
    acceptance: Acceptance = USUAL

    @cached_property
    def key(self) -> str:
        """A digest of the images' fingerprint, and of how they are cut and stored."""
        parts = [VERSION, self.source.fingerprint, self.shard_bytes, self.max_side, self.quality, *self.acceptance.key]
        return sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the source's classes."""
        return self.source.classes

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.source.multi_label

    @property
    def num_shards(self) -> int:
        """The number of shards that the images make, by their size before they are re-encoded."""
        return len(self._shards)

    def samples(self, number: int) -> Iterable[Sample]:
        """Yield the images of a shard. Refused where one is no longer what was indexed."""
        shard = self._shards[number]
        for start in range(0, len(shard), _READ_AT_ONCE):
            ids = shard[start : start + _READ_AT_ONCE]
            paths = self.source.table["path"].chunk(0).take(to_arrow(ids)).to_pylist()
            label, lists = self._labels(ids)
            names = self.source.names(ids)
            for sample_id, path, class_number, class_numbers, content, name in zip(
                ids.tolist(), paths, label, lists, self.source.read(ids), names, strict=True
            ):
                self.source.check(sample_id, content)
                yield Sample(path, class_number, self._stored(sample_id, content), name, tuple(class_numbers))

    def _labels(self, ids: NDArray[np.int64]) -> tuple[list[int], list[list[int]]]:
        """Return (the label of each of these images, or 0; its several labels, or none)."""
        if self.source.multi_label:
            return [0] * len(ids), self.source.label_lists.take(to_arrow(ids)).to_pylist()
        return self.source.labels[ids].tolist(), [[]] * len(ids)

    @cached_property
    def _shards(self) -> tuple[NDArray[np.int64], ...]:
        """Return the sample ids of every shard."""
        num = len(self.source)
        order = permutation(num, 0, 0, _ORDER_STREAM)(np.arange(num))
        sizes = to_numpy(self.source.table["num_bytes"])[order]
        shard = (np.cumsum(sizes) - sizes) // self.shard_bytes
        return tuple(np.split(order, np.flatnonzero(np.diff(shard)) + 1))

    def _stored(self, sample_id: int, content: Encoded) -> bytes:
        """Return an image as it is packed."""
        if self.max_side is None and self.quality is None:
            return bytes(content)
        picture = self.source.decode(sample_id, content)
        if self.max_side is not None and max(picture.size) > self.max_side:
            scale = self.max_side / max(picture.size)
            width, height = (max(1, round(side * scale)) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
        file = BytesIO()
        picture.save(file, "JPEG", quality=self.quality or 90)
        return file.getvalue()


def check_packing_options(max_side: int | None, quality: int | None) -> None:
    """Refuse a longest side or a JPEG quality that no image can have."""
    if max_side is not None and max_side < 1:
        raise Refused(f"--max-side {max_side}: give the pixels of the longer side, such as 512")
    if quality is not None and not 1 <= quality <= 100:
        raise Refused(f"--quality {quality}: give a JPEG quality from 1 to 100, such as 90")

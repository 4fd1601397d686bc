"""A source of images: what is known of every sample without reading it, and the encoded bytes of any of them.

To all users of a source a sample is an id, its row: classes in order of label, images in order of name within their
class. Only `pipelines.data.storage` knows the kind of container; it changes neither an id nor a fingerprint.
"""

from __future__ import annotations

import json
import logging
import socket
import zlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from kdcore.errors import Refused, RunFailed
from kdcore.located import is_uri
from pipelines.data.broken import MAX_SHARE, OnBroken
from pipelines.data.copies import CopyPolicy
from pipelines.data.images import Encoded, black_image, decode_image
from pipelines.data.labels import COLUMN as LABELS
from pipelines.data.labels import TYPE as LABELS_TYPE
from pipelines.data.labels import is_multi_label, multi_hot
from pipelines.data.source_table import fingerprint, storage_of, with_places_in_copy
from pipelines.data.storage import Storage
from pipelines.data.store import changed
from pipelines.data.traces import doubting
from pipelines.vectors import to_arrow, to_numpy
from pipelines.views.draws import Stream
from pipelines.views.order import permutation

logger = logging.getLogger("stillhouse")


@dataclass(frozen=True)
class Source:
    """The images of one split.

    root: the folder or URI that they lie in; classes: their names in order of label; table: a row per sample with path
    (<split>/<class>/<name>), label, height, width (pixels, as stored, before any EXIF rotation), num_bytes, crc32, and
    where its bytes lie: `location` (a file; absent: the path is it), or `file` and `offset`; files: (name, bytes) of
    those that the column `file` numbers, or of the folder of single files in a store; stored_in: the folder or URI that
    the bytes are read from, where it is not the root; copies: what a node keeps of an object store; None: nothing;
    on_broken: what is done about an image that is no longer the one that was indexed; labelled: whether the images have
    labels. Those without have label 0, which means nothing, and no classes of their own. multi_label: whether an image
    may have several; the table then has a column `labels` of lists, and `label` is 0; mark: see `doubting`.
    """

    root: str
    classes: tuple[str, ...]
    table: pa.Table
    files: tuple[tuple[str, int], ...] = ()
    stored_in: str | None = None
    copies: CopyPolicy | None = None
    on_broken: OnBroken = "refuse"
    labelled: bool = True
    multi_label: bool = False
    mark: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return only the fields: another process opens its own files."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def has_one_label(self) -> bool:
        """Whether every image is of one class."""
        return self.labelled and not self.multi_label

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """The class number of every sample [N]; of images with one label each."""
        assert not self.multi_label, "images with several labels have no class number"
        return self._column("label")

    @cached_property
    def label_lists(self) -> pa.ListArray:
        """The class numbers of every sample, a list each; of images with several labels."""
        if not self.labelled:
            return pa.array([[]] * len(self), type=LABELS_TYPE)
        return self.table[LABELS].chunk(0)

    def targets(self, ids: NDArray[np.int64]) -> NDArray[np.int64] | NDArray[np.float32]:
        """Return the labels of samples as a batch holds them: class numbers [n], or 1 for each class shown [n,K]."""
        if self.multi_label:
            return multi_hot(self.label_lists, ids, len(self.classes))
        return self.labels[ids].astype(np.int64)

    @cached_property
    def class_counts(self) -> NDArray[np.int64]:
        """The number of samples that show each class [K]."""
        numbers = to_numpy(self.label_lists.flatten()) if self.multi_label else self.labels
        return np.bincount(numbers, minlength=len(self.classes))

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

        It covers what the images are and are called, but neither where they lie nor what they are packed in.
        """
        stored = (self.table.schema.metadata or {}).get(b"fingerprint")
        return stored.decode() if stored else fingerprint(self.classes, self.table)

    @cached_property
    def broken(self) -> tuple[str, ...]:
        """What is wrong with each image that was left out when the source was indexed."""
        return tuple(json.loads((self.table.schema.metadata or {}).get(b"broken", b"[]")))

    @cached_property
    def _storage(self) -> Storage:
        return storage_of(self.stored_in or self.root, self.table, self.files, self.copies)

    def read(self, ids: NDArray[np.int64]) -> list[Encoded]:
        """Return the encoded images of these samples, in this order; callable from any thread.

        Refused, with the name of the image, where one is no longer what was indexed; or, where broken images are
        skipped, a black picture of its size takes its place: a function of the sample only, on every rank. RunFailed
        where a disk or a store fails, which says nothing about the image, and where too many images are replaced.
        The images of one call may share a reused buffer, which is held as long as one of them is kept.
        """
        if self.on_broken == "refuse":
            with doubting(self.mark):
                return list(self._storage.read(ids))
        try:  # without a mark: listed anew, the images would be others than those of the run that goes on
            contents = list(self._storage.read(ids))
        except Refused:  # one of them is unreadable: which?
            return [self._read_or_replace(sample_id) for sample_id in ids]
        expected = to_numpy(self.table["crc32"])[ids].tolist()
        wrong = [row for row, content in enumerate(contents) if zlib.crc32(content) != expected[row]]
        for row in wrong:
            contents[row] = self._read_or_replace(ids[row])
        return contents

    @cached_property
    def replaced(self) -> dict[int, str]:
        """{sample id: what is wrong with it} of the images that this process has replaced by black pictures."""
        return {}

    def _read_or_replace(self, sample_id: np.int64) -> Encoded:
        try:
            (content,) = self._storage.read(np.array([sample_id]))
            self._compare(int(sample_id), content)
        except Refused as error:
            if not self._is_of_the_image(error):
                raise
            self._note_replaced(int(sample_id), str(error))
            return black_image(int(self.heights[sample_id]), int(self.widths[sample_id]))
        return content

    def _is_of_the_image(self, error: Refused) -> bool:
        """Return whether an image could not be read through its own fault: else its node is set up wrongly.

        A file that is there and may not be read is not broken, nor is one whose root, tar or shard is gone.
        """
        cause = error.__cause__
        if not isinstance(cause, OSError):
            return True
        is_gone = isinstance(cause, FileNotFoundError | NotADirectoryError)
        return is_gone and "file" not in self.table.column_names and Path(self.stored_in or self.root).is_dir()

    def _note_replaced(self, sample_id: int, reason: str) -> None:
        """Note an image that is replaced; RunFailed where there are more of them than an index may leave out."""
        if sample_id in self.replaced:
            return
        self.replaced[sample_id] = reason
        logger.warning("shown as a black picture: %s", reason)
        if len(self.replaced) > max(1, MAX_SHARE * len(self)):
            raise RunFailed(
                f"{len(self.replaced)} of the {len(self)} images in {self.root} cannot be read on the node "
                f"{socket.gethostname()} as they were indexed, more than the {MAX_SHARE:.0%} that data.on_broken=skip "
                f"replaces by black pictures; restore them, or start again in another output_dir: {reason}"
            )

    @property
    def ahead(self) -> int:
        """The least number of images to read ahead of those in use."""
        return self._storage.ahead

    def names(self, ids: NDArray[np.int64]) -> list[str]:
        """Return the location of each of these samples, in words for an error: the file's path."""
        return self._storage.names(ids)

    def require_labels(self, purpose: str) -> None:
        """Refuse images without labels for a purpose that needs them, given as a word or two."""
        if not self.labelled:
            raise Refused(f"the images in {self.root} have no labels, which {purpose} needs; give images with labels")

    def require_one_label(self, purpose: str) -> None:
        """Refuse images without labels, or with several each, for a purpose that needs one of each."""
        self.require_labels(purpose)
        if self.multi_label:
            raise Refused(
                f"the images in {self.root} have several labels each, and {purpose} needs one; leave it out, or give "
                "images with one label"
            )

    def decode(self, sample_id: int, content: Encoded) -> Image.Image:
        """Return the whole picture of a sample in RGB; Refused, with its name, where that cannot be."""
        (name,) = self.names(np.array([sample_id]))
        with doubting(self.mark):
            return decode_image(content, name, int(self.heights[sample_id]), int(self.widths[sample_id]))

    def check(self, sample_id: int, content: Encoded) -> None:
        """Refuse an encoded image that is not the one that was indexed: its checksum differs."""
        with doubting(self.mark):
            self._compare(sample_id, content)

    def _compare(self, sample_id: int, content: Encoded) -> None:
        if zlib.crc32(content) != self.table["crc32"].chunk(0)[sample_id].as_py():
            (name,) = self.names(np.array([sample_id]))
            raise changed(name)

    def subset(self, ids: NDArray[np.int64]) -> Source:
        """Return the given samples as a source of their own, renumbered from 0 in the given order."""
        table = self.table.take(to_arrow(ids)).combine_chunks()
        return replace(self, table=table.replace_schema_metadata({"broken": json.dumps(self.broken)}))

    def split(self, fraction: float, seed: int) -> tuple[Source, Source]:
        """Return (the rest, a held-out slice): `fraction` of every class, rounded, chosen by the seed.

        Of a class of two or more images at least one lies on either side; a class of one stays in the rest. Without
        labels, or with several per image, the fraction is of all. Ids stay in order. Refused where none would be held
        out.
        """
        order, rank, counts = self._drawn(seed, Stream.HELD_OUT)
        rounded = np.rint(fraction * counts).astype(np.int64)
        num_held = np.minimum(np.maximum(rounded, self.has_one_label), np.maximum(counts - 1, 0))
        if not num_held.any():
            reason = "no class has two" if self.has_one_label else f"there are {len(self)}"
            raise Refused(
                f"data.held_out={fraction:g} keeps back none of the images in {self.root} ({reason}); give more, or "
                "set data.held_out=0 train.select=last"
            )
        held = rank < np.repeat(num_held, counts)
        return self.subset(np.sort(order[~held])), self.subset(np.sort(order[held]))

    def sample(self, per_class: int, seed: int) -> Source:
        """Return `per_class` samples of every class, chosen by the seed; fewer are part of more. Ids stay in order.

        Refused where a class has fewer. If all are chosen, the source itself is returned.
        """
        self.require_one_label("data.images_per_class")
        order, rank, counts = self._drawn(seed, Stream.SAMPLE)
        if np.any(short := counts < per_class):
            label = int(short.argmax())
            raise Refused(
                f"class {self.classes[label]!r} has {counts[label]} images in {self.root}, not {per_class}; choose at "
                f"most {int(counts.min())} a class"
            )
        return self if np.all(counts == per_class) else self.subset(np.sort(order[rank < per_class]))

    def _drawn(self, seed: int, stream: Stream) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return (ids by class, within it in an order drawn from the seed; their place in their class; class sizes)."""
        labels = self._column("label")
        order = np.lexsort((permutation(len(self), seed, 0, stream)(np.arange(len(self))), labels))
        counts = np.bincount(labels, minlength=len(self.classes) if self.has_one_label else 1)
        return order, np.arange(len(self)) - np.repeat(np.cumsum(counts) - counts, counts), counts

    def _column(self, name: str) -> NDArray[np.int32]:
        column: NDArray[np.int32] = to_numpy(self.table[name])
        return column


def open_table(
    root: str,
    table: pa.Table,
    stored_in: str | None = None,
    copies: CopyPolicy | None = None,
    on_broken: OnBroken = "refuse",
    mark: Path | None = None,
) -> Source:
    """Return the source whose table, with its metadata, `source_table` has made."""
    metadata = table.schema.metadata
    if is_uri(stored_in or root):
        table = with_places_in_copy(table)
    files = tuple((name, num_bytes) for name, num_bytes in json.loads(metadata.get(b"files", b"[]")))
    if "place_in_copy" in table.column_names:
        files = ((table["path"][0].as_py().partition("/")[0], pc.sum(table["num_bytes"]).as_py()),)
    classes = tuple(json.loads(metadata[b"classes"]))
    return Source(root, classes, table, files, stored_in, copies, on_broken, bool(classes), is_multi_label(table), mark)

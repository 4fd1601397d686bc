"""The labels of images that may show several classes each: lists of class numbers, in indexes and in packs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.listing import name_numbers, read_class_list, refuse_twins
from pipelines.places import Found, Place
from pipelines.vectors import to_numpy

COLUMN = "labels"  # of a table; next to it, `label` is 0 for all, so that ids are in order of path
SEPARATOR = "|"  # of the class names in a field of a CSV
NAMES = "classes.txt"  # next to a CSV
TYPE = pa.list_(pa.int32())


def is_multi_label(table: pa.Table) -> bool:
    """Return whether the images of an index's table may have several labels each."""
    return COLUMN in table.column_names


def split_names(texts: pa.Array) -> pa.Array:
    """Return the class names in each field of a CSV: [N] of text -> [N] lists of text; none for an empty field."""
    lists = pc.split_pattern(texts.fill_null("").cast(pa.string()), SEPARATOR)
    names = pc.utf8_trim_whitespace(lists.values)
    return _without_empty(pa.ListArray.from_arrays(lists.offsets, names))


def _without_empty(lists: pa.ListArray) -> pa.ListArray:
    """Return lists of names without the empty ones."""
    kept = np.array([name != "" for name in lists.values.to_pylist()], dtype=bool)
    ends = np.concatenate(([0], np.cumsum(kept)))[to_numpy(lists.offsets)]
    return pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), lists.values.filter(pa.array(kept)))


def read_names(place: Place, files: Sequence[Found]) -> list[str] | None:
    """Return the names of all classes, one per line of the classes.txt among files; None if there is none."""
    if not any(file.name == NAMES for file in files):
        return None
    return [name for name in read_class_list(place, NAMES) if name]


def number_lists(lists: pa.ListArray, names: Sequence[str] | None, root: str) -> tuple[tuple[str, ...], pa.ListArray]:
    """Return (class names in order, the class numbers of every image, in order and once each) of lists of labels.

    lists [N]: of names, or of numbers from 0; names: of all classes; None: those that occur, in order, or the digits
    of the numbers. Refused for a label that is not one of the classes, and if there is no label at all.
    """
    labels = lists.flatten()
    if not len(labels) or labels.null_count:
        found = "no label at all" if not len(labels) else f"{labels.null_count} labels without a value"
        raise Refused(f"{root} has {found}; give each image the classes that it shows")
    if pa.types.is_integer(labels.type):
        numbers = labels.cast(pa.int64()).to_numpy()
        classes = name_numbers(numbers, names, root)
    else:
        classes = tuple(names if names is not None else sorted(pc.unique(labels).to_pylist()))
        if names is None:
            refuse_twins(classes, root)
        found = pc.index_in(labels, pa.array(classes, type=labels.type))
        if found.null_count:
            unknown = labels[int(np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))[0])]
            raise Refused(
                f"{root} has an image of class {unknown.as_py()!r}, which {NAMES} does not name; add it there"
            )
        numbers = found.to_numpy()
    sizes = lists.value_lengths().fill_null(0).to_numpy()
    rows = np.repeat(np.arange(len(lists)), sizes)
    pairs = np.unique(np.stack([rows, numbers.astype(np.int64)]), axis=1)
    ends = np.concatenate(([0], np.cumsum(np.bincount(pairs[0], minlength=len(lists)))))
    return classes, pa.ListArray.from_arrays(pa.array(ends, type=pa.int32()), pa.array(pairs[1].astype(np.int32)))


def multi_hot(lists: pa.ListArray, ids: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    """Return 1 for each class that an image shows and 0 for the others: [n,K], of the rows `ids` [n] of lists [N]."""
    offsets, values = to_numpy(lists.offsets), to_numpy(lists.values)
    found = np.zeros((len(ids), num_classes), dtype=np.float32)
    starts, sizes = offsets[ids], offsets[ids + 1] - offsets[ids]
    rows = np.repeat(np.arange(len(ids)), sizes)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found[rows, values[np.repeat(starts, sizes) + within]] = 1
    return found


def answers_of(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the class numbers of every image, padded with -1: [N,M], M at least 1."""
    sizes, values = to_numpy(lists.value_lengths()), to_numpy(lists.flatten())
    found = np.full((len(lists), max(1, int(sizes.max(initial=0)))), -1, dtype=np.int64)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    found[np.repeat(np.arange(len(lists)), sizes), within] = values
    return found


def digest_of(lists: pa.ListArray) -> str:
    """Return the SHA-256 of lists of labels."""
    digest = hashlib.sha256()
    for numbers in (lists.value_lengths(), lists.flatten()):
        digest.update(numbers.to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()

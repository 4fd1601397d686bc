"""The shards that a source's images lie in, as `pipelines.views.windows` shuffles them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.copies import piece_of
from pipelines.data.source import Source
from pipelines.vectors import to_numpy
from pipelines.views.windows import Windows

_MAX_DISTANCE = 0.5  # of the classes' shares in a window from those of all images, beyond what chance makes


def windows_of(source: Source, size: int) -> Windows:
    """Return a source's images in windows of `size` shards: the files that hold them, in pieces of at most 1 GiB.

    Refused for single files, and where a window holds few of the classes, as in tars that are in order of class.
    """
    if "file" not in source.table.column_names:
        raise Refused(
            f"data.window_shards={size}: the images in {source.root} are single files, not shards; pack them "
            "(python -m ops data pack), or leave data.window_shards out"
        )
    file, offset = (to_numpy(source.table[name]) for name in ("file", "offset"))
    stored = np.lexsort((offset, file)).astype(np.min_scalar_type(-len(file)))
    file, piece = file[stored], piece_of(offset[stored])
    changes = 1 + np.flatnonzero((np.diff(file) != 0) | (np.diff(piece) != 0))
    windows = Windows(size, stored, np.concatenate(([0], changes, [len(stored)])).astype(np.int64))
    if source.labelled and not source.multi_label:
        _check_classes(source, windows)
    return windows


def in_windows(source: Source, windows: Windows | None) -> Source:
    """Return a source that is read window by window: from an object store, in whole blocks that later make room."""
    if windows is None or source.copies is None:
        return source
    sizes = to_numpy(source.table["num_bytes"])[windows.stored]
    largest = int(np.add.reduceat(sizes, windows.starts[:-1]).max())
    return replace(source, copies=replace(source.copies, window_bytes=windows.size * largest))


def _check_classes(source: Source, windows: Windows) -> None:
    """Refuse windows whose classes are far from those of all images.

    Measured by the total variation distance between the classes' shares, on average over the first epoch's windows
    under seed 0. Shares of n images drawn at random are off by about sqrt(K / (2 pi n)) for K classes.
    """
    num_classes = len(source.classes)
    labels = source.labels[windows.stored]
    expected = np.bincount(labels, minlength=num_classes) / len(labels)
    shards = [np.arange(start, stop) for start, stop in zip(windows.starts[:-1], windows.starts[1:], strict=True)]
    distances, num_found = [], []
    for window in windows.windows(0, 0):
        counts = np.bincount(labels[_joined(shards, window)], minlength=num_classes)
        chance = np.sqrt(num_classes / (2 * np.pi * counts.sum()))
        distances.append(np.abs(counts / counts.sum() - expected).sum() / 2 - chance)
        num_found.append(int(np.count_nonzero(counts)))
    if np.mean(distances) > _MAX_DISTANCE:
        raise Refused(
            f"data.window_shards={windows.size}: a window of {source.root} holds {np.mean(num_found):.0f} of "
            f"{num_classes} classes, so that batches would be of few classes; pack the images, which brings them "
            "into random order (python -m ops data pack), or leave data.window_shards out"
        )


def _joined(shards: list[NDArray[np.int64]], window: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([shards[shard] for shard in window])

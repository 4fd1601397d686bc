"""Large buffers that are reused: the system fills every page of fresh memory with zeros before it is written to.

A buffer is taken back when nothing refers to the array handed out any more: no batch, no part of one, no autograd
graph, no other library through DLPack or the buffer protocol.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 64  # bytes, as torch's own memory: kernels may be chosen by it


class Buffers:
    """Hands out memory, which still holds its earlier content; callable from any thread.

    kept: the most free buffers to keep; spare: by what share a new buffer is larger than was asked for.
    """

    def __init__(self, kept: int, spare: float = 0.0) -> None:
        self._kept = kept
        self._spare = spare
        self._free: list[NDArray[np.uint8]] = []

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return `num_bytes` of memory that nothing else in use shares."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._with_spare(num_bytes))
        if len(memory) < num_bytes:  # dropped, which is rare: sizes differ little
            memory = _aligned(self._with_spare(num_bytes))
        lent = memory[:num_bytes]
        weakref.finalize(lent, self._take_back, memory).atexit = False
        # A part of an array refers to the array that owns the memory, past all between; past no other kind of object.
        return np.asarray(lent.data)

    def _with_spare(self, num_bytes: int) -> int:
        return num_bytes + int(self._spare * num_bytes)

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < self._kept:
            self._free.append(memory)


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(num_bytes + _ALIGNED, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + num_bytes]

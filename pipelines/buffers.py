"""Large memory that is used again: the system fills every page of fresh memory with zeros before it is written to.

A buffer is taken back when nothing refers to what it was handed out as, whoever that was: a batch, a part of one, an
autograd graph, another library through DLPack or the buffer protocol.
"""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

_ALIGNED = 64  # bytes, as torch's own memory: kernels may choose their way by it


class Buffers:
    """Hands out memory, whose content is what was there before; callable from any thread.

    kept: free buffers at most; spare: what a new one is larger than was asked for, as a share of that.
    """

    def __init__(self, kept: int, spare: float = 0.0) -> None:
        self._kept = kept
        self._spare = spare
        self._free: list[NDArray[np.uint8]] = []

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return memory of so many bytes that shares none with any other in use."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = _aligned(self._with_spare(num_bytes))
        if len(memory) < num_bytes:  # given up: the sizes that are asked for differ little, so that few are
            memory = _aligned(self._with_spare(num_bytes))
        lent = memory[:num_bytes]
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return lent

    def _with_spare(self, num_bytes: int) -> int:
        return num_bytes + int(self._spare * num_bytes)

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        if len(self._free) < self._kept:
            self._free.append(memory)


def _aligned(num_bytes: int) -> NDArray[np.uint8]:
    memory = np.empty(num_bytes + _ALIGNED, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNED
    return memory[start : start + num_bytes]

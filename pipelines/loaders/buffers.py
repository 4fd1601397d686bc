"""Memory for batches that is used again: a fresh batch of 64 pictures is 9,000 pages that the system has to fill first.

A buffer is taken back when nothing refers to what it was handed out as, whoever that was: a batch, a part of one, an
autograd graph, another library through DLPack.
"""

from __future__ import annotations

import weakref
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KEPT = 4  # free buffers at most: a batch in training, one that is prepared, and two between


class Buffers:
    """Hands out float32 tensors on the CPU, whose values are what was there before."""

    def __init__(self) -> None:
        self._free: list[NDArray[np.float32]] = []

    def take(self, *shape: int) -> Tensor:
        """Return a tensor of this shape that shares memory with no other one in use."""
        size = prod(shape)
        memory = self._free.pop() if self._free else None
        if memory is None or len(memory) < size:  # a smaller one is given up: batches have one size but for the last
            memory = torch.empty(size, dtype=torch.float32).numpy()
        lent = memory[:size]
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return torch.from_numpy(lent).view(shape)  # torch keeps `lent` for as long as any tensor shares the memory

    def _take_back(self, memory: NDArray[np.float32]) -> None:
        if len(self._free) < _KEPT:
            self._free.append(memory)

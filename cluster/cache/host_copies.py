"""From the device to host memory without waiting: a batch is copied while the next one is computed.

Not here: what is copied (`cluster.cache.builder`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = dict[str, NDArray[Any]]


def in_host_memory(
    batches: Iterable[tuple[int, dict[str, Tensor]]], device: torch.device
) -> Iterator[tuple[int, Arrays]]:
    """Yield batches of (rows done, {column: rows}) as numpy arrays, in order, each valid until the next is asked for.

    On a GPU a batch goes through pinned memory on its own stream, and is yielded once the kernels of the next one are
    launched, so that the device never idles for it.
    """
    if device.type != "cuda":
        for done, tensors in batches:
            yield done, {name: tensor.numpy() for name, tensor in tensors.items()}
        return
    slots, waiting = (PinnedSlot(device), PinnedSlot(device)), None
    for number, (done, tensors) in enumerate(batches):
        slot = slots[number % 2]
        slot.take(done, tensors)
        if waiting is not None:
            yield waiting.arrays()
        waiting = slot
    if waiting is not None:
        yield waiting.arrays()


class PinnedSlot:
    """Pinned memory for one batch, used again for a later one."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.copied = torch.cuda.Event()
        self.memory: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self.done = 0

    def take(self, done: int, tensors: dict[str, Tensor]) -> None:
        """Begin to copy a batch, after what the device is computing now."""
        self.done, self.rows = done, {name: len(tensor) for name, tensor in tensors.items()}
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for name, tensor in tensors.items():
                self._room(name, tensor).copy_(tensor, non_blocking=True)
                tensor.record_stream(self.stream)  # else its memory might be reused before it is read
            self.copied.record(self.stream)

    def arrays(self) -> tuple[int, Arrays]:
        """Return the batch, once its copy is done."""
        self.copied.synchronize()
        return self.done, {name: self.memory[name][:rows].numpy() for name, rows in self.rows.items()}

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        """Return pinned memory for a column's rows, allocated where there is none of that size."""
        found = self.memory.get(name)
        if found is None or len(found) < len(tensor):
            self.memory[name] = found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return found[: len(tensor)]

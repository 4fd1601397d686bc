"""Memory that is used again: only when nobody refers to any part of it, whoever that is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipelines.buffers import Buffers


def place(buffers: Buffers, num_bytes: int = 96) -> int:
    """Return where the next buffer lies."""
    return int(buffers.take(num_bytes).ctypes.data)


def test_not_while_a_tensor_a_part_or_a_graph_shares_it() -> None:
    buffers = Buffers(4)
    batch = torch.from_numpy(buffers.take(96)).view(torch.float32).view(4, 6)
    own, part = batch.data_ptr(), torch.from_dlpack(batch[1:3])
    weight = torch.ones(6, requires_grad=True)
    loss = (weight * part).sum()
    del batch
    assert place(buffers) != own, "a part of it is in use"
    del part
    assert place(buffers) != own, "the backward pass will read it"
    loss.backward()
    held = [buffers.take(40) for _ in range(3)]
    assert own in {buffer.ctypes.data for buffer in held}, "less fits as well"
    assert len({buffer.ctypes.data for buffer in held}) == 3
    assert all(buffer.ctypes.data % 64 == 0 for buffer in held)


def test_not_while_a_view_of_bytes_shares_it() -> None:
    buffers = Buffers(4)
    whole = buffers.take(96).data
    own, part = np.frombuffer(whole, dtype=np.uint8).ctypes.data, whole[3:9]
    pixels = np.frombuffer(part, dtype=np.uint8)
    del whole, part
    assert place(buffers) != own
    del pixels
    assert place(buffers) == own


def test_not_while_a_part_of_the_array_shares_it() -> None:
    """Only the array itself was watched, whose parts numpy ties to the owner of the memory."""
    buffers = Buffers(4)
    whole = buffers.take(96)
    own, part = whole.ctypes.data, whole[8:24].view(np.float32)[1:]
    del whole
    assert place(buffers) != own
    del part
    assert own in {buffer.ctypes.data for buffer in [buffers.take(96) for _ in range(2)]}
    assert len(buffers.take(0)) == 0


def test_no_more_than_may_be_kept_and_a_larger_one_in_the_place_of_one_too_small() -> None:
    buffers = Buffers(2, spare=0.5)
    held = [buffers.take(100) for _ in range(3)]
    first = {buffer.ctypes.data for buffer in held}
    held.clear()
    assert len([1 for buffer in [buffers.take(150) for _ in range(3)] if buffer.ctypes.data in first]) == 2
    large = place(buffers, 1000)
    assert place(buffers, 1400) == large


@pytest.mark.parametrize("kept", [1, 8])
def test_threads_never_share_any(kept: int) -> None:
    buffers = Buffers(kept)

    def use(number: int) -> bool:
        memory = buffers.take(1000 + number % 7)
        memory[:] = number % 251
        return bool(np.all(memory == number % 251))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(4000)))

"""A full GPU memory is refused: the request must become smaller; it is not a fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kdcore.errors import Refused

# PyTorch's wording.
_SIZES = re.compile(
    r"Tried to allocate ([\d.]+ \w+).*?capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", re.DOTALL
)


@contextmanager
def refuse_full_gpu(remedy: str) -> Iterator[None]:
    """Refuse what does not fit into the GPU's memory, with what to change; also a decorator.

    The same step would fail again, so nothing retries it.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        sizes = _SIZES.search(str(error))
        found = f": {sizes[1]} more were wanted, {sizes[3]} of {sizes[2]} are free" if sizes else ""
        raise Refused(f"out of GPU memory{found}; {remedy}") from error

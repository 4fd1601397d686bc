"""Some of many rows, taken evenly from all of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spread(total: int, number: int) -> NDArray[np.int64]:
    """Return up to `number` of the rows 0 to total - 1 in rising order: the first, and from two on the last."""
    return np.unique(np.linspace(0, total - 1, min(number, total)).astype(np.int64))

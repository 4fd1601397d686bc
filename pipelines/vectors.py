"""Vectors of numbers between Arrow and numpy, without a copy.

pyarrow's own `to_numpy` and `pa.array` import pandas the first time, a third of a second in every process that opens
images; these two do not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def to_numpy(column: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Return the numbers of a column, read-only; with several chunks, a copy. Refused by Arrow where one is missing."""
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return np.from_dlpack(column)


def to_arrow(values: NDArray[Any]) -> pa.Array:
    """Return numbers [n] as a column, which sees later changes to them."""
    rows = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(rows.dtype), len(rows), [None, pa.py_buffer(rows)])

"""Numbers go to Arrow and back as they are, without a copy and without pandas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from pipelines.vectors import to_arrow, to_numpy


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint32", "float16", "float32"])
def test_numbers_are_kept_and_shared(dtype):
    values = np.arange(5).astype(dtype)
    back = to_numpy(to_arrow(values))
    assert back.dtype == values.dtype
    assert back.tolist() == values.tolist()
    assert np.shares_memory(back, values)
    assert not back.flags.writeable


def test_parts_and_chunks():
    column = to_arrow(np.arange(6))
    assert to_numpy(column[2:4]).tolist() == [2, 3]
    assert to_numpy(pa.chunked_array([column[:2], column[4:]])).tolist() == [0, 1, 4, 5]
    assert to_arrow(np.arange(6)[::2]).to_pylist() == [0, 2, 4]


def test_a_missing_number_is_not_made_up():
    with pytest.raises(pa.ArrowTypeError, match="no nulls"):
        to_numpy(pa.array([1, None]))


def test_neither_needs_pandas():
    code = "import sys, numpy; from pipelines.vectors import to_arrow, to_numpy; "
    code += "to_numpy(to_arrow(numpy.arange(3))); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pandas" not in done.stdout.split()

"""Some of many rows, evenly from all of them."""

from __future__ import annotations

import pytest

from pipelines.spread import evenly_spread


@pytest.mark.parametrize(
    ("total", "number", "rows"),
    [(10, 4, [0, 3, 6, 9]), (10, 3, [0, 4, 9]), (3, 3, [0, 1, 2]), (3, 1000, [0, 1, 2]), (1, 5, [0]), (7, 1, [0])],
)
def test_evenly_from_all_of_them(total, number, rows):
    assert evenly_spread(total, number).tolist() == rows

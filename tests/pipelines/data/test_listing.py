"""Classes that are given as numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kdcore.errors import Refused
from pipelines.data.listing import name_numbers


def test_numbers_that_are_ids_make_no_classes() -> None:
    with pytest.raises(Refused, match=r"images of 2 classes whose numbers go up to 1,440,764: ids rather than numbers"):
        name_numbers(np.array([2084, 1_440_764]), None, "images")
    assert len(name_numbers(np.array([3, 999]), None, "images")) == 1000, "a small part of ImageNet"
    assert len(name_numbers(np.arange(0, 21_000, 2) + 1, None, "images")) == 21_000

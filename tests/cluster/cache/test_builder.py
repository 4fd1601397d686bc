"""Which views a cache's codes are fitted to, and on which their error is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cluster.cache import builder as builder_module
from cluster.cache.builder import Builder
from cluster.recipe.config import RunConfig


@pytest.mark.parametrize("sampling", ["images", "classes"])
def test_the_error_of_a_code_is_measured_on_views_that_it_was_not_fitted_to(
    sampling: str, recipes: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two samples have no image in common, and a ninth is measured; sampling by class repeats none."""

    def answers(self: Builder, part: str, view: int, ids: np.ndarray) -> Iterator[tuple[int, Any]]:
        assert (part, view) == ("train", 0)
        yield len(ids), ids.tolist()

    monkeypatch.setattr(Builder, "answers", answers)
    monkeypatch.setattr(
        builder_module, "fitted_codes", lambda columns, fit, held_back: (list(fit()), list(held_back()))
    )
    made = Builder(recipes(data__sampling=sampling), torch.device("cpu"))
    (fitted,), (measured,) = made._fitted_codes(())
    shown = set(made.run.plan.order(0, np.arange(48)).tolist())
    assert len({*fitted, *measured}) == len(fitted) + len(measured)
    assert {*fitted, *measured} == shown
    assert len(measured) == len(shown) // 9

"""A loss whose value goes by the epoch is in no CUDA graph, which would repeat the value of its capture."""

import copy
from typing import Literal

import pytest

from cluster.recipe.reading import parse
from cluster.recipe.rules import check_may_be_trained
from kdcore.errors import Refused
from kdcore.terms import Term, base


@pytest.mark.parametrize("said", ["computes_by_epoch", "goes_by_epoch"])
def test_a_loss_that_computes_by_the_epoch_is_never_constant(said, monkeypatch, recipe):
    monkeypatch.setattr(base, "REGISTRY", copy.copy(base.REGISTRY))
    own = {"__annotations__": {"term": Literal["cooling_in_a_test"]}, "term": "cooling_in_a_test"}
    cooling = type("Cooling", (Term,), {**own, "__module__": __name__, said: property(lambda self: True)})(weight=1.0)
    assert cooling.goes_by_epoch
    assert not cooling.is_constant_at(3)
    config = parse(recipe(train__cuda_graph=True, train__micro_batch=None, scaling__num_workers=0))
    with pytest.raises(Refused, match="the term cooling_in_a_test computes something else in every epoch; leave it"):
        check_may_be_trained(config.model_copy(update={"method": (cooling,)}))

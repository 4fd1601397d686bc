"""A compiled step: the loss and the gradients of the same step as it is written."""

from __future__ import annotations

import pytest
import torch

from tests.kdcore.distillers import CE, FEATURES, KD, batch, gradients, make, network, probe


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_a_compiled_distiller_gives_the_same_loss(backend):
    method = CE, KD | {"warmup_epochs": 2}, FEATURES, probe(detach_head_at="layer3")
    eager, compiled = make(*method, teacher=network(9)), make(*method, teacher=network(9))
    step = torch.compile(compiled, backend=backend, fullgraph=True)
    for epoch in (0.0, 0.5, 1.0):
        expected, found = eager(batch(epoch=epoch)), step(batch(epoch=epoch))
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.terms, expected.terms, rtol=1e-4, atol=1e-5)
        wanted, grads = gradients(eager, expected.loss), gradients(compiled, found.loss)
        # What the detached head keeps from the labels has no gradient, or one of zeros when compiled.
        assert not any(grads.pop(name).any() for name in grads.keys() - wanted.keys())
        torch.testing.assert_close(grads, wanted, rtol=1e-3, atol=1e-4)

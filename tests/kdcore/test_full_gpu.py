"""A full GPU raises a RuntimeError, as networks do for images of a wrong size; it is not taken for one of these."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcore.distiller import Distiller
from kdcore.layout import last_features
from kdcore.rehearsal import check_network, rehearse
from kdcore.taps import FeatureTaps
from kdcore.terms import Term, TermContext, TermInputs

SIZE = (32, 32)


def full(*_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class Full(Term):
    """A loss that finds the GPU full. Its name has no default, so that it stays out of the registry."""

    at: Literal["build", "loss"]

    def build(self, context: TermContext) -> nn.Module:
        return full() if self.at == "build" else super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        return full()


def rehearsed(network: nn.Module, *terms: Term) -> None:
    rehearse(Distiller(network, terms, image_size=SIZE, num_samples=8), SIZE, 8, mixes=False)


def test_a_network_on_a_full_gpu() -> None:
    """It was said to reject images of this size, with advice to change that."""
    network = timm.create_model("cifar_resnet8", num_classes=3)
    network.conv1.register_forward_hook(full)
    for look in (check_network, lambda network, size: FeatureTaps(network, []).shapes(size), last_features):
        with pytest.raises(torch.OutOfMemoryError):
            look(network, SIZE)


@pytest.mark.parametrize("at", ["build", "loss"])
def test_a_loss_on_a_full_gpu(at: Literal["build", "loss"]) -> None:
    """Its taps were said not to fit, or, a plug-in's, to be computed wrongly."""
    with pytest.raises(torch.OutOfMemoryError):
        rehearsed(timm.create_model("cifar_resnet8", num_classes=3), Full(term="own", weight=1, at=at))

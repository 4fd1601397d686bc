"""A student's moving average: each of its tensors moves once a step, however many names it has."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cluster.training.loop import make_ema
from cluster.training.moving_average import MovingAverage


class Tied(nn.Module):
    """Two layers with one weight, batch norm that is used under two names, and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.alone = (nn.Linear(3, 3) for _ in range(3))
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.same_norm = self.norm


@torch.no_grad()
def changed(network: nn.Module, seed: int) -> nn.Module:
    """The network after a step: all its tensors are others, buffers too."""
    network, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * 9)
    return network


def state(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.state_dict())


@pytest.mark.parametrize("name", ["tied", "coat_tiny"])
def test_a_tensor_with_several_names_moves_once(name: str) -> None:
    torch.manual_seed(0)
    network = Tied() if name == "tied" else timm.create_model(name, num_classes=3, img_size=32)
    steps = [changed(network, seed) for seed in range(3)]
    config = SimpleNamespace(train=SimpleNamespace(ema_decay=0.9, ema_warmup=False))
    average, expected = make_ema(config, network), state(changed(network, 0))
    for number, network in enumerate(steps):
        average.update(network, number + 1)
        if number:  # the first update copies
            for key, value in state(network).items():
                expected[key] = torch.lerp(expected[key], value, 0.1) if value.is_floating_point() else value
    assert len({id(tensor) for tensor in network.state_dict(keep_vars=True).values()}) < len(expected)
    torch.testing.assert_close(state(average.module), expected)


def test_without_such_tensors_it_is_timms_to_the_bit() -> None:
    network = timm.create_model("cifar_resnet8", num_classes=3)
    ours, theirs = (kind(network, decay=0.99, use_warmup=True) for kind in (MovingAverage, ModelEmaV3))
    for step in range(1, 5):
        network = changed(network, step)
        ours.update(network, step)
        theirs.update(network, step)
    bits = state(theirs.module)
    assert all(torch.equal(tensor, bits[name]) for name, tensor in state(ours.module).items())

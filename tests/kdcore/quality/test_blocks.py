import pytest
import timm
import torch
from torch import nn

import kdcore.networks  # noqa: F401  registers the CIFAR networks
from kdcore.quality.blocks import block_taps
from kdcore.taps import FeatureTaps

RESNET34 = ["act1", *(f"layer{s}.{i}" for s, depth in enumerate((3, 4, 6, 3), 1) for i in range(depth))]
EXPECTED = {
    "resnet34": RESNET34,
    "cifar_resnet8": ["act1", "layer1.0", "layer2.0", "layer3.0"],
    "cifar_vgg8": ["layer1.2", "layer2.2", "layer3.2", "layer4.2", "layer5.2"],
    "vgg11_bn": [
        *(f"features.{i}" for i in (2, 6, 10, 13, 17, 20, 24, 27)),
        "pre_logits.act1",
        "pre_logits.act2",
    ],
    "test_vit": [f"blocks.{i}" for i in range(6)],
    "test_convnext": [f"stages.{s}.blocks.{i}" for s, depth in enumerate((1, 2, 4, 2)) for i in range(depth)],
    "test_efficientnet": ["bn1.act", *(f"blocks.{i}.0" for i in range(5)), "bn2.act"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_taps_of_known_networks_in_depth_order(name):
    with torch.device("meta"):  # shapes alone: no weights, no time
        model = timm.create_model(name)
    assert block_taps(model) == EXPECTED[name]


@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "cifar_wrn_16_2", "cifar_mobilenetv2_half", "test_resnet", "test_vit2"]
)
def test_every_tap_can_be_used(name):
    model = timm.create_model(name)
    size = tuple(timm.data.resolve_model_data_config(model)["input_size"][1:])
    taps = block_taps(model, size)
    assert len(taps) >= 4
    assert FeatureTaps(model, taps).shapes(size).keys() == set(taps)


class Odd(nn.Module):
    """Runs its blocks backwards, one of them twice, and one of them never."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(4))
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number in (3, 1, 1, 0):
            x = self.layers[number](x)
        return self.act(x)


def test_the_order_is_that_of_execution_and_repeated_or_idle_layers_are_left_out():
    assert block_taps(Odd(), (4, 4)) == ["layers.3.1", "layers.0.1", "act"]


def test_looking_for_taps_leaves_the_network_as_it_was():
    model = timm.create_model("cifar_resnet8").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    block_taps(model)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())

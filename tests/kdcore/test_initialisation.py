"""Fresh weights are drawn as by the code behind the published tables: deviations by layer, constants exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

import kdcore.networks  # noqa: F401  registers the networks

Scheme = Callable[[nn.Module], float]  # the standard deviation of a layer's weights


def fan_out(layer: nn.Module) -> float:
    """Kaiming's normal distribution, with the fan-out of a whole layer: sqrt(2 / (k^2 out))."""
    assert isinstance(layer, nn.Conv2d)
    return math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))


def pytorch(layer: nn.Module) -> float:
    """PyTorch's default, uniform within 1 / sqrt(fan-in)."""
    return 1 / math.sqrt(3 * layer.weight[0].numel())


def small(layer: nn.Module) -> float:
    return 0.01


# network: the schemes of its convolutions and of its classifier; what the classifier's bias is (None: as PyTorch has
# it)
SCHEMES: dict[str, tuple[Scheme, Scheme, float | None]] = {
    "cifar_resnet20": (fan_out, pytorch, None),
    "cifar_resnet8x4": (fan_out, pytorch, None),
    "cifar_resnet50": (fan_out, pytorch, None),
    "cifar_resnet9": (fan_out, pytorch, None),
    "cifar_resnet34": (fan_out, pytorch, None),
    "cifar_wrn_16_2": (fan_out, pytorch, 0.0),
    "cifar_wrn_40_1": (fan_out, pytorch, 0.0),
    "cifar_vgg8": (fan_out, small, 0.0),
    "cifar_vgg13": (fan_out, small, 0.0),
    "cifar_mobilenetv2_half": (fan_out, small, 0.0),
    "cifar_mobilenetv2": (fan_out, small, 0.0),
    "cifar_shufflenetv1": (pytorch, pytorch, None),
    "cifar_shufflenetv2": (pytorch, pytorch, None),
    "mobilenetv1": (pytorch, pytorch, None),
}


def require_deviation(name: str, weight: torch.Tensor, expected: float) -> None:
    """Within five standard errors: 1 / sqrt(2 n) of it for a normal distribution, less for a uniform one."""
    found = (weight.square().mean()).sqrt().item()
    assert found == pytest.approx(expected, rel=5 / math.sqrt(2 * weight.numel())), name


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}


def zeroed(network: nn.Module) -> set[str]:
    """The batch norms that begin at 0; every other one begins at 1, and all shifts at 0."""
    norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert all((layer.bias == 0).all() for layer in norms.values())
    constants = {name: layer.weight.unique().tolist() for name, layer in norms.items()}
    assert set(map(tuple, constants.values())) <= {(0.0,), (1.0,)}
    return {name for name, values in constants.items() if values == [0.0]}


@pytest.mark.parametrize("name", SCHEMES)
def test_fresh_weights(name):
    torch.manual_seed(0)
    of_convolutions, of_classifier, bias = SCHEMES[name]
    network = timm.create_model(name, num_classes=100)
    for path, layer in convolutions(network).items():
        require_deviation(path, layer.weight, of_convolutions(layer))
        if layer.bias is not None:
            assert (layer.bias == 0).all(), path
    classifier = network.get_classifier()
    require_deviation("classifier", classifier.weight, of_classifier(classifier))
    if bias is None:
        require_deviation("classifier's bias", classifier.bias, pytorch(classifier))
    else:
        assert (classifier.bias == bias).all()


@pytest.mark.parametrize("name", SCHEMES)
def test_batch_norms_begin_at_1_but_for_the_blocks_of_the_feature_only_resnets(name):
    network = timm.create_model(name, num_classes=100)
    blocks = {"cifar_resnet9": (1, 1, 1, 1), "cifar_resnet34": (3, 4, 6, 3)}.get(name, ())
    last = {f"layer{i}.{j}.bn2" for i, depth in enumerate(blocks, 1) for j in range(depth)}
    assert zeroed(network) == last


@pytest.mark.parametrize("name", ["cifar_vgg11_hidden", "cifar_vgg19_hidden"])
def test_the_hidden_layers_of_a_vgg_begin_small(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=100)
    for path, layer in convolutions(network).items():
        require_deviation(path, layer.weight, 0.01 if path.startswith("hidden") else fan_out(layer))
        assert (layer.bias == 0).all()
    classifier = network.get_classifier()
    require_deviation("classifier", classifier.weight, 0.01)
    assert (classifier.bias == 0).all()


def test_a_new_classifier_begins_like_the_first():
    network = timm.create_model("cifar_vgg8", num_classes=100)
    network.reset_classifier(50)
    require_deviation("classifier", network.get_classifier().weight, 0.01)
    assert (network.get_classifier().bias == 0).all()

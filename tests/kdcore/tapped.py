"""Networks with a tap in their middle."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

import kdcore.networks  # noqa: F401  registers cifar_resnet8

NETWORKS = {
    "cifar_resnet8": ({}, "layer2", 32),
    "test_resnet": ({}, "layer3", 64),
    "test_vit": ({"img_size": 32}, "blocks.2", 32),
}


def network(name: str, **kwargs) -> tuple[nn.Module, str, Tensor]:
    """(network, a tap in its middle, two images)."""
    args, tap, size = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **args, **kwargs)
    return model, tap, torch.randn(2, 3, size, size)

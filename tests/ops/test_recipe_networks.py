"""The students of recipes that timm builds begin as in the published runs."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from ops import catalog

RESNET18 = [name for name in catalog.names() if name.startswith("imagenet/") and "-resnet18-" in name]


@pytest.mark.parametrize("name", RESNET18)
def test_the_imagenet_students_blocks_begin_at_1(name):
    """torchvision's ResNets leave the last batch norm of a block at 1, timm's begin it at 0."""
    torch.manual_seed(0)
    student = catalog.load(name).student
    network = timm.create_model(student.model, **student.args)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all()
            assert (layer.bias == 0).all()
        elif isinstance(layer, nn.Conv2d):
            expected = math.sqrt(2 / (layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels))
            assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * layer.weight.numel()))


VITS = {"vit_b": 85_221_220, "vit_b-vit_ett": 3_009_316, "vit_b-vit_ett-standard": 3_009_316}


@pytest.mark.parametrize("name", VITS)
def test_the_vits_have_a_class_token_and_a_head_of_zeros_over_all_tokens(name):
    """65 tokens of a 32-pixel image; the parameters are those of the paper's networks with 100 classes."""
    student = catalog.load(f"feature_only/{name}").student
    network = timm.create_model(student.model, num_classes=100, **student.args).eval()
    assert sum(p.numel() for p in network.parameters()) == VITS[name]
    head = network.get_classifier()
    assert not head.weight.any()
    assert not head.bias.any()
    tokens = torch.randn(2, 65, network.embed_dim)
    torch.testing.assert_close(network.forward_head(tokens, pre_logits=True), tokens.mean(dim=1))
    assert network.forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 65, network.embed_dim)


def test_the_teacher_of_the_vits_is_the_network_that_its_own_recipe_trains():
    assert catalog.load("feature_only/vit_b-vit_ett").teacher.args == catalog.load("feature_only/vit_b").student.args

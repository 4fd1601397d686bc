"""Two MobileNetV2s for 32-pixel images, and MobileNetV1 for ImageNet as the distillation tables define it."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.efficientnet import mobilenetv1_100, mobilenetv2_100
from torch import Tensor, nn

from kdcore.networks.cifar import (
    CifarNetwork,
    conv_norm_act,
    default_cfg,
    init_classifier,
    init_convolutions,
    register,
    stage,
)

# Stages by resolution, each of parts (channels at width 1, blocks, stride, expansion).
STAGES = (
    ((16, 1, 1, 1), (24, 2, 1, 6)),
    ((32, 3, 2, 6),),
    ((64, 4, 2, 6), (96, 3, 1, 6)),
    ((160, 3, 2, 6), (320, 1, 1, 6)),
)


class CifarMobileNetV2(CifarNetwork):
    """MobileNetV2 with ReLU and fewer strides: a 32-pixel image ends in a 2x2 map.

    forward_features ends with the last (linear, so signed) bottleneck; its widening to 1280 channels belongs to the
    head. Channels are width times those of the paper, rounded down. The expansion convolution exists even where the
    expansion is 1. The classifier begins as N(0, 0.01), its bias at 0. Source: Sandler et al., arXiv 1801.04381, table
    2, as in the CRD code base.
    """

    classifier_name = "classifier"
    classifier_init = "small_normal"

    def __init__(self, width: float, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__(int(320 * width), 1280)
        channels = int(32 * width)
        self.conv1 = conv_norm_act(in_chans, channels, 3, stride=2)
        layers = []
        for parts in STAGES:
            blocks = nn.Sequential()
            for base, depth, stride, expansion in parts:
                block = partial(_inverted_residual, expansion=expansion)
                blocks.extend(stage(block, channels, int(base * width), stride, depth))
                channels = int(base * width)
            layers.append(blocks)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.conv_head = conv_norm_act(channels, self.head_hidden_size)
        init_convolutions(self)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last, signed map [B,C,H/16,W/16] of images [B,3,H,W]."""
        return self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))

    def widen(self, x: Tensor) -> Tensor:
        """Widen the map to 1280 channels."""
        return self.conv_head(x)


def _inverted_residual(in_channels: int, channels: int, stride: int, expansion: int) -> nn.Module:
    return InvertedResidual(in_channels, channels, stride=stride, exp_ratio=expansion, act_layer=nn.ReLU)


register("cifar_mobilenetv2_half", CifarMobileNetV2, first_conv="conv1.0", width=0.5)


default_cfgs = generate_default_cfgs(
    {
        "cifar_mobilenetv2": default_cfg("classifier", "conv_stem"),
        "mobilenetv1": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        },
    }
)


@register_model
def cifar_mobilenetv2(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
    """Build MobileNetV2 as published (width 1, ReLU6), except for the stem's stride of 1: 32 pixels end in a 2x2 map.

    It is timm's `mobilenetv2_100`, with that network's names: the 17 blocks are blocks.0.0 to blocks.6.0. It belongs to
    the feature-only paper and is initialised as there: convolutions by Kaiming's normal distribution with a fan-out of
    kernel * channels, depthwise ones too (timm divides theirs by the groups), the classifier as N(0, 0.01).
    """
    pretrained_cfg = pretrained_cfg or get_pretrained_cfg("cifar_mobilenetv2")
    network: Any = mobilenetv2_100(pretrained, pretrained_cfg=pretrained_cfg, **kwargs)
    network.conv_stem.stride = (1, 1)
    if not pretrained:
        init_convolutions(network)
        if isinstance(network.classifier, nn.Linear):
            init_classifier(network.classifier, "small_normal")
    return network


@register_model
def mobilenetv1(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> nn.Module:
    """Build MobileNetV1 at width 1 (4.23 M parameters), the student whose ImageNet baseline in the tables is 68.87.

    It is timm's `mobilenetv1_100` except for the activation, ReLU as in the tables (ReLU6 in timm), and fresh weights,
    PyTorch's defaults as in the tables' code. Source: Howard et al., arXiv 1704.04861, table 1.
    """
    pretrained_cfg = pretrained_cfg or get_pretrained_cfg("mobilenetv1")
    network: Any = mobilenetv1_100(pretrained, pretrained_cfg=pretrained_cfg, **{"act_layer": "relu", **kwargs})
    if not pretrained:
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
    return network

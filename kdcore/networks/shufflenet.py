"""ShuffleNetV1 and ShuffleNetV2 for 32-pixel images: a 1x1 stem at full resolution, then three halvings.

Convolutions keep PyTorch's default initialisation here, as in the CRD code base.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual

from kdcore.networks.cifar import CifarNetwork, conv_norm_act, register, stage

STEM_CHANNELS = 24
DEPTHS = (4, 8, 4)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, depthwise 3x3 and grouped 1x1 convolution, added to the input.

    With stride 2 the input is average pooled and concatenated instead. [B,in_channels,H,W] ->
    [B,out_channels,H/stride,W/stride]. The hidden width is a quarter of what the unit computes. Source: Zhang et al.,
    arXiv 1707.01083, figure 2.
    """

    groups = 3

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        computed = out_channels - in_channels if stride == 2 else out_channels
        hidden = computed // 4
        # The stem's 24 channels are too few to be split into groups.
        groups = 1 if in_channels == STEM_CHANNELS else self.groups
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.shuffle = nn.ChannelShuffle(groups)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, computed, 1, groups=self.groups, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Compute the unit's map."""
        y = self.shuffle(self.act(self.bn1(self.conv1(x))))
        # ReLU after the depthwise convolution too: the CRD code base has it, the paper does not.
        y = self.bn3(self.conv3(self.act(self.bn2(self.conv2(y)))))
        return self.act(x + y if self.pool is None else torch.cat([y, self.pool(x)], dim=1))


class CifarShuffleNetV1(CifarNetwork):
    """ShuffleNet with 3 groups: 240-480-960 channels, a 4x4 map at the end. Source: arXiv 1707.01083, table 1."""

    def __init__(self, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__(960)
        self.stem = conv_norm_act(in_chans, STEM_CHANNELS)
        self.layer1 = stage(ShuffleUnit, STEM_CHANNELS, 240, 2, DEPTHS[0])
        self.layer2 = stage(ShuffleUnit, 240, 480, 2, DEPTHS[1])
        self.layer3 = stage(ShuffleUnit, 480, 960, 2, DEPTHS[2])
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map [B,C,H/8,W/8] of images [B,3,H,W]."""
        return self.layer3(self.layer2(self.layer1(self.stem(x))))


class CifarShuffleNetV2(CifarNetwork):
    """ShuffleNetV2 at width 1: 116-232-464 channels of torchvision's units, a 4x4 map at the end.

    The last convolution, to 1024 channels, belongs to the head. Source: Ma et al., arXiv 1807.11164, table 5.
    """

    def __init__(self, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg") -> None:
        super().__init__(464, 1024)
        self.stem = conv_norm_act(in_chans, STEM_CHANNELS)
        self.layer1 = stage(InvertedResidual, STEM_CHANNELS, 116, 2, DEPTHS[0])
        self.layer2 = stage(InvertedResidual, 116, 232, 2, DEPTHS[1])
        self.layer3 = stage(InvertedResidual, 232, 464, 2, DEPTHS[2])
        self.conv_head = conv_norm_act(464, self.head_hidden_size)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map [B,C,H/8,W/8] of images [B,3,H,W]."""
        return self.layer3(self.layer2(self.layer1(self.stem(x))))

    def widen(self, x: Tensor) -> Tensor:
        """Widen the map to 1024 channels."""
        return self.conv_head(x)


register("cifar_shufflenetv1", CifarShuffleNetV1, first_conv="stem.0")
register("cifar_shufflenetv2", CifarShuffleNetV2, first_conv="stem.0")

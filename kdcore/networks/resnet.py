"""Residual networks for 32-pixel images: ResNet-6n+2, their wide and bottleneck forms, and pre-activated WRN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnet import BasicBlock, Bottleneck, downsample_conv
from timm.models.resnetv2 import DownsampleConv, PreActBasic
from torch import Tensor, nn

from kdcore.networks.cifar import CifarNetwork, init_convolutions, register, stage


def residual(block: type[BasicBlock | Bottleneck], in_channels: int, channels: int, stride: int) -> nn.Module:
    """Make one of timm's blocks; where the shape changes, a 1x1 convolution and batch norm on the shortcut."""
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = downsample_conv(in_channels, channels, kernel_size=1, stride=stride)
    return block(in_channels, channels // block.expansion, stride, downsample)


def pre_activated(in_channels: int, channels: int, stride: int) -> nn.Module:
    """Make timm's pre-activated block; where the shape changes, the shortcut is a 1x1 convolution of the activation."""
    return PreActBasic(
        in_channels,
        channels,
        stride=stride,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        proj_layer=DownsampleConv,
    )


class CifarResNet(CifarNetwork):
    """A 3x3 stem at full resolution, then stages that halve it, except the first.

    widths: channels of the stem and of each stage's output; depths: blocks per stage; zero_init_last: each block's last
    batch norm begins at 0, so that a fresh block is its shortcut; max_pool: halve the stem's map, for images of more
    pixels. The state dictionary has the names of torchvision's ResNet (conv1, bn1, layer1.0.conv1, ..., fc), as the
    published CIFAR checkpoints do.

    Source: He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385, section 4.2, with projection
    shortcuts (option B), as in the CRD code base.
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        block: type[BasicBlock | Bottleneck] = BasicBlock,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        zero_init_last: bool = False,
        max_pool: bool = False,
    ) -> None:
        super().__init__(widths[-1])
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if max_pool else nn.Identity()
        self.stages = [f"layer{i}" for i in range(1, len(depths) + 1)]
        for i, name in enumerate(self.stages):
            stride = 1 if i == 0 else 2
            self.add_module(name, stage(partial(residual, block), widths[i], widths[i + 1], stride, depths[i]))
        init_convolutions(self)
        if zero_init_last:
            for name in self.stages:
                for made in self.get_submodule(name).children():
                    made.zero_init_last()  # type: ignore[operator]  # timm's blocks have it
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last stage's map [B,C,H/4,W/4] (H/8 of four stages; half of that with max_pool)."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x


class CifarWideResNet(CifarNetwork):
    """WRN-depth-width: pre-activated basic blocks, 16-16w-32w-64w channels; the classifier's bias begins at 0.

    forward_features ends after the last batch norm and ReLU, so that pooling and the classifier are all that follows;
    `layer3` itself is the sum before them. Source: Zagoruyko and Komodakis, arXiv 1605.07146, table 1.
    """

    classifier_init = "zero_bias"

    def __init__(
        self, depth: int, width: int, num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg"
    ) -> None:
        super().__init__(64 * width)
        assert depth % 6 == 4, "a WRN has 6n+4 layers"
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.layer1 = stage(pre_activated, 16, 16 * width, 1, depth // 6)
        self.layer2 = stage(pre_activated, 16 * width, 32 * width, 2, depth // 6)
        self.layer3 = stage(pre_activated, 32 * width, 64 * width, 2, depth // 6)
        self.norm = BatchNormAct2d(64 * width)
        init_convolutions(self)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the normalised map [B,64 width,H/4,W/4] of images [B,3,H,W]."""
        return self.norm(self.layer3(self.layer2(self.layer1(self.conv1(x)))))


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"cifar_resnet{_depth}", CifarResNet, widths=(16, 16, 32, 64), depths=[_depth // 6] * 3)
# He et al.'s networks for ImageNet, except for the stem, which keeps the resolution; ResNet-9 has one block per stage.
# They are those of the feature-only paper, whose blocks begin as their shortcuts.
for _name, _depths in (("9", (1, 1, 1, 1)), ("34", (3, 4, 6, 3))):
    _widths = (64, 64, 128, 256, 512)
    register(f"cifar_resnet{_name}", CifarResNet, widths=_widths, depths=_depths, zero_init_last=True)
for _depth in (8, 32):
    register(f"cifar_resnet{_depth}x4", CifarResNet, widths=(32, 64, 128, 256), depths=[_depth // 6] * 3)
register("cifar_resnet50", CifarResNet, widths=(64, 256, 512, 1024, 2048), depths=(3, 4, 6, 3), block=Bottleneck)
for _depth, _width in ((16, 2), (40, 1), (40, 2)):
    register(f"cifar_wrn_{_depth}_{_width}", CifarWideResNet, depth=_depth, width=_width)

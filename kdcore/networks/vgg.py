"""VGG with batch norm for 32-pixel images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdcore.networks.cifar import CifarNetwork, init_convolutions, register


class CifarVGG(CifarNetwork):
    """Five stages of 3x3 convolutions (with bias), batch norm and ReLU, and one linear classifier.

    2x2 max pooling after the first three stages only, so that a 32-pixel image ends in a 4x4 map. depths: convolutions
    per stage. The classifier begins as N(0, 0.01), its bias at 0. Source: Simonyan and Zisserman, arXiv 1409.1556, cut
    down as in the CRD code base.
    """

    classifier_name = "classifier"
    classifier_init = "small_normal"
    widths = (64, 128, 256, 512, 512)

    def __init__(
        self, depths: Sequence[int], num_classes: int = 100, in_chans: int = 3, global_pool: str = "avg"
    ) -> None:
        super().__init__(self.widths[-1])
        in_channels = (in_chans, *self.widths[:-1])
        self.layer1, self.layer2, self.layer3, self.layer4, self.layer5 = (
            _convolutions(*shape) for shape in zip(in_channels, self.widths, depths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        init_convolutions(self)
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map [B,512,H/8,W/8] of images [B,3,H,W]."""
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.pool(layer(x))
        return self.layer5(self.layer4(x))


class CifarHiddenVGG(CifarVGG):
    """VGG as published, with two hidden layers of 4096 and dropout before the classifier.

    Max pooling follows all five stages, so that a 32-pixel image ends in a 1x1 map; larger maps are averaged first. The
    hidden layers belong to the head, and begin like the classifier. Source: Simonyan and Zisserman, table 1, columns A
    and E, with batch norm.
    """

    def __init__(
        self,
        depths: Sequence[int],
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__(depths, num_classes, in_chans, global_pool)
        self.head_hidden_size = 4096
        self.hidden = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(self.num_features, 4096, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
            nn.Conv2d(4096, 4096, 1),
            nn.ReLU(inplace=True),
            nn.Dropout(drop_rate),
        )
        for layer in self.hidden:  # linear layers in the paper, 1x1 convolutions here
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self.reset_classifier(num_classes, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map [B,512,H/32,W/32] of images [B,3,H,W]."""
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            x = self.pool(layer(x))
        return x

    def widen(self, x: Tensor) -> Tensor:
        """Pass the map through the hidden layers: [B,4096,1,1]."""
        return self.hidden(x)


def _convolutions(in_channels: int, channels: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        conv = nn.Conv2d(channels if i else in_channels, channels, 3, padding=1)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


register("cifar_vgg8", CifarVGG, first_conv="layer1.0", depths=(1, 1, 1, 1, 1))
register("cifar_vgg11_hidden", CifarHiddenVGG, first_conv="layer1.0", depths=(1, 1, 2, 2, 2))
register("cifar_vgg13", CifarVGG, first_conv="layer1.0", depths=(2, 2, 2, 2, 2))
register("cifar_vgg19_hidden", CifarHiddenVGG, first_conv="layer1.0", depths=(2, 2, 4, 4, 4))

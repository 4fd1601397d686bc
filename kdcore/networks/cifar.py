"""What every network for 32-pixel images shares: timm's model contract, initialisation and registration.

The definitions are those of the CRD code base (Tian et al., "Contrastive Representation Distillation", arXiv
1910.10699), which the tables of the field use. In all of them `layer1`, `layer2`, ... end at successive stages, so that
taps have the same names in every network. Fresh weights are drawn as there, or for the networks of the feature-only
paper (Cooper et al., arXiv 2511.14981) as in that paper's code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

from timm.layers.classifier import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

# What timm's `register_model` looks up: {name: preprocessing and head of the network}.
default_cfgs: dict[str, Any] = {}


class CifarNetwork(nn.Module):
    """A classifier of small images by timm's contract.

    forward_features: images [B,3,H,W] -> the map [B,num_features,H',W'] that SimKD taps (the last one, except in
    networks that widen it by a 1x1 convolution just before pooling: there, the one before). forward_head: that map ->
    logits [B,K], or with pre_logits the vector [B,head_hidden_size] that the classifier reads. Without classes
    (num_classes=0) the logits are that vector. No dropout (except in the VGGs with hidden layers), no drop path.
    """

    classifier_name: ClassVar[str] = "fc"
    # How a fresh classifier begins: as PyTorch has it, the same with a zero bias, or N(0, 0.01) with a zero bias.
    classifier_init: ClassVar[Literal["default", "zero_bias", "small_normal"]] = "default"
    num_classes: int
    global_pool: Any

    def __init__(self, num_features: int, head_hidden_size: int | None = None) -> None:
        super().__init__()
        self.num_features = num_features
        self.head_hidden_size = head_hidden_size or num_features

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a fresh classifier of num_classes (0: none); global_pool None keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, classifier = create_classifier(self.head_hidden_size, num_classes, pool_type=pool_type)
        self.num_classes = num_classes
        if isinstance(classifier, nn.Linear):
            init_classifier(classifier, self.classifier_init)
        setattr(self, self.classifier_name, classifier.to(next(self.parameters())))  # device and dtype

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, or an identity without classes."""
        return self.get_submodule(self.classifier_name)

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map [B,num_features,H',W'] of images [B,3,H,W]."""
        raise NotImplementedError

    def widen(self, x: Tensor) -> Tensor:
        """Turn the map [B,num_features,H,W] into the map [B,head_hidden_size,H,W] that is pooled."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the map of `forward_features` into logits [B,K], or into what the classifier reads."""
        x = self.global_pool(self.widen(x))
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits [B,K] of images [B,3,H,W]."""
        return self.forward_head(self.forward_features(x))


def init_classifier(classifier: nn.Linear, scheme: str) -> None:
    """Initialise a classifier in place: see `CifarNetwork.classifier_init`."""
    if scheme == "small_normal":
        nn.init.normal_(classifier.weight, std=0.01)
    if scheme != "default":
        nn.init.zeros_(classifier.bias)


def init_convolutions(network: nn.Module) -> None:
    """Initialise every convolution by Kaiming's normal distribution with fan-out, and its bias by zeros."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def conv_norm_act(in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> nn.Sequential:
    """Chain a convolution without bias, batch norm and ReLU, padded so that stride 1 keeps the size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def stage(
    block: Callable[[int, int, int], nn.Module], in_channels: int, channels: int, stride: int, depth: int
) -> nn.Sequential:
    """Chain `depth` blocks of block(in_channels, out_channels, stride), the first of them with the stride."""
    shapes = [(in_channels, channels, stride)] + [(channels, channels, 1)] * (depth - 1)
    return nn.Sequential(*(block(*shape) for shape in shapes))


def register(name: str, network: type[CifarNetwork], first_conv: str = "conv1", **definition: Any) -> None:
    """Make `timm.create_model(name, num_classes=..., in_chans=..., global_pool=...)` build network(**definition)."""

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(network, name, pretrained, **{**definition, **kwargs})

    build.__name__ = name
    default_cfgs.update(generate_default_cfgs({name: default_cfg(network.classifier_name, first_conv)}))
    register_model(build)


def default_cfg(classifier: str, first_conv: str) -> dict[str, Any]:
    """Return timm's facts of a network: statistics of the CIFAR-100 training images; the whole image is evaluated."""
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": first_conv,
        "classifier": classifier,
    }

"""What a network's last features look like (a map, a channels-last map, tokens) and how to convert between forms."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kdcore.errors import Refused, one_line, typed_line
from kdcore.named_models import own_place

# How networks and losses complain about shapes; whatever else they raise is a bug and keeps its traceback.
# A full GPU (torch.OutOfMemoryError) is a RuntimeError, too, and says nothing about shapes: it is let pass.
NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError)

_GIVEN_3_CHANNELS = re.compile(r"expected input\[\d+, 3, \d+, \d+\] to have \d+ channels")

# Layers that torch defines on [B,C,H,W], whatever the network around them.
_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
)
# Zoos whose maps have the images' proportions, and whose channels-last maps mostly go undeclared.
_ZOOS = ("timm.", "torchvision.")


def is_complaint(error: Exception) -> bool:
    """Whether an error is about what a network was given, or a mistake in the user's own; all others are bugs here."""
    return not isinstance(error, (Refused, torch.OutOfMemoryError)) and (
        isinstance(error, NETWORK_ERRORS) or bool(own_place(error))
    )


def complaint(error: Exception, of_size: str) -> str:
    """Return a network's complaint of images, and its remedy: '(reason); remedy'.

    of_size: what helps where their size does not fit. A user's own network is told the line that raised the error.
    """
    if _GIVEN_3_CHANNELS.search(str(error)):
        return f"({one_line(error)}); images have 3 channels, grey ones too: have its first layer take 3"
    if not (place := own_place(error)):
        return f"({one_line(error)}); {of_size}"
    if not isinstance(error, NETWORK_ERRORS):
        return f"({typed_line(error)}{place}); correct that line"
    return f"({typed_line(error)}{place}); correct that line, or {of_size}"


@dataclass(frozen=True)
class Layout:
    """How a network lays out its last features: a grid of vectors, with or without prefix tokens before it.

    channels: length of a vector; grid: (H, W); kind: a map [B,C,H,W], a map [B,H,W,C], or tokens
    [B,num_prefix_tokens+H*W,C], the class token first where there is one.
    """

    channels: int
    grid: tuple[int, int]
    kind: Literal["NCHW", "NHWC", "tokens"] = "NCHW"
    num_prefix_tokens: int = 0

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> (grid [B,C,H,W], prefix tokens [B,C,P])."""
        if self.kind == "tokens":
            columns = features.transpose(1, 2)
            prefix, grid = columns.tensor_split((self.num_prefix_tokens,), dim=2)
            return grid.unflatten(2, self.grid), prefix
        grid = features if self.kind == "NCHW" else features.permute(0, 3, 1, 2)
        return grid, grid.new_empty(grid.shape[0], grid.shape[1], 0)

    def untapped(self, features: Tensor) -> Tensor:
        """Return features that `kdcore.taps` handed out in the network's own layout."""
        return features.permute(0, 2, 3, 1) if self.kind == "NHWC" else features

    def as_map(self, grid: Tensor, prefix: Tensor) -> Tensor:
        """Return the map that convolutions read: the grid [B,C,H,W], or for tokens the column [B,C,P+H*W,1]."""
        return torch.cat([prefix, grid.flatten(2)], dim=2).unsqueeze(-1) if self.kind == "tokens" else grid

    def from_map(self, x: Tensor) -> Tensor:
        """Undo `as_map`: turn a convolution's output into features in this layout."""
        if self.kind == "tokens":
            return x.squeeze(-1).transpose(1, 2)
        return x if self.kind == "NCHW" else x.permute(0, 2, 3, 1)


def last_features(network: nn.Module, image_size: tuple[int, int]) -> Tensor:
    """Return `forward_features` of two fixed random images. Refused if it is missing or does not give one tensor."""
    name = type(network).__name__
    if not hasattr(network, "forward_features"):
        raise Refused(f"{name} has no forward_features, so its last map cannot be named; use a network of timm")
    generator = torch.Generator().manual_seed(0)
    weight = next(network.parameters())
    images = torch.randn(2, 3, *image_size, generator=generator).to(weight)
    try:
        features = network.forward_features(images)  # type: ignore[operator]
    except Exception as error:
        if not is_complaint(error):
            raise
        said = complaint(error, "change the size of the views, or the args of the model")
        raise Refused(f"{name} rejects images of {list(image_size)} {said}") from error
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        shown = list(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
        raise Refused(f"{name}'s last features are {shown}; SimKD needs one map [B,C,H,W] or tokens [B,N,C]")
    return features


def layout_of(network: nn.Module, features: Tensor, image_size: tuple[int, int]) -> Layout:
    """Find the layout of a network's last features. Refused where tokens form no grid of the images' proportions."""
    if features.ndim == 4:
        last = is_channels_last(features.shape, image_size, network)
        channels, height, width = features.permute(0, 3, 1, 2).shape[1:] if last else features.shape[1:]
        return Layout(channels, (height, width), "NHWC" if last else "NCHW")
    num_prefix_tokens = int(getattr(network, "num_prefix_tokens", 0))
    patches = features.shape[1] - num_prefix_tokens
    height = round(math.sqrt(patches * image_size[0] / image_size[1]))
    if height < 1 or patches % height or (patches // height) * image_size[0] != height * image_size[1]:
        raise Refused(
            f"{type(network).__name__}: {patches} tokens (after {num_prefix_tokens} prefix tokens) form no grid of the "
            f"proportions of images of {list(image_size)}"
        )
    return Layout(features.shape[2], (height, patches // height), "tokens", num_prefix_tokens)


def is_channels_last(
    shape: Sequence[int], image_size: tuple[int, int], network: nn.Module, module: nn.Module | None = None
) -> bool:
    """Whether a map that a network gives, of shape [B,.,.,.], is [B,H,W,C] and not [B,C,H,W].

    module: the one inside the network that gives it; None for the network's own last features.

    Never for a convolution, batch norm, group norm or pooling layer. Else, in a network of timm or torchvision and in
    one that declares `output_fmt = "NHWC"`, the sides tell: a map has the proportions of the images [H,W], to less than
    one place. Where its first two sides have them and its last two do not, it is channels-last; the other way round it
    is not; where both have them (as many channels as places), or neither, the network's declaration decides. A network
    from elsewhere that declares nothing gives [B,C,H,W]. So the blocks of a Swin are read correctly, as are the
    convolution of its stem, and the blocks of a GCViT or a TinyViT, which declare nothing.
    """
    if len(shape) != 4 or isinstance(module, _CHANNELS_FIRST):
        return False
    declared = getattr(network, "output_fmt", None) == "NHWC"
    if not (declared or type(network).__module__.startswith(_ZOOS)):
        return False
    _, one, two, three = shape
    last, first = in_proportion(one, two, image_size), in_proportion(two, three, image_size)
    return declared if last == first else last


def in_proportion(height: int, width: int, image_size: tuple[int, int]) -> bool:
    """Whether sides have the proportions of the images [H,W], to less than one place."""
    return abs(height * image_size[1] - width * image_size[0]) < max(image_size)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Keep a network in eval mode while it is probed, so that no running statistics change."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)

"""How networks lie in memory: channels-last as the recipe says, except where torch would crash."""

from __future__ import annotations

import torch
from torch import nn

from cluster.recipe.config import RunConfig
from kdcore.remarks import warn_once

# Fewer channels than a vector has, on images of at least this side in pixels, crash torch 2.15: (channels, side) on a
# CPU with AVX-512 (with a margin: 46 is the smallest side seen to crash), and on others (there maps of 8 pixels or more
# crash, which nearly every image comes to: any side). tests/cluster/test_memory_format.py says when the backward is
# right everywhere.
CRASHING_WITH_AVX512, CRASHING = (16, 40), (8, 1)


def to_device(module: nn.Module, device: torch.device, channels_last: bool) -> nn.Module:
    """Return the module on the device, its tensors of four dimensions channels-last or contiguous.

    `Module.to` fails on tensors of five dimensions, a Conv3d's, as in timm's lambda networks. `contiguous` leaves
    tensors unchanged where it finds nothing to do; `to` also sets the strides of dimensions of size one, so that a
    network's layout does not depend on where its weights came from.
    """
    module = module.to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=layout)
    return module


def runs_channels_last(config: RunConfig, network: nn.Module, device: torch.device) -> bool:
    """Return whether a network runs channels-last; where the recipe wants it and torch would crash, say so once."""
    if not config.train.channels_last:
        return False
    channels, side = crashing_shapes()
    shown = [*config.views.all_sizes, *config.for_teacher.views.all_sizes]
    is_small = max(max(size) for size in shown) < side
    name = None if device.type == "cuda" or is_small else crashing_convolution(network, channels)
    if name is not None:
        warn_once(
            f"{type(network).__name__} runs contiguous on the CPU, not channels-last: there torch's backward of narrow "
            f"1x1 convolutions with a stride ({name}) crashes"
        )
    return name is None


def crashing_shapes() -> tuple[int, int]:
    """Return the number of channels below which, and the side in pixels from which, convolutions crash on this CPU."""
    return CRASHING_WITH_AVX512 if torch.cpu.get_capabilities().get("avx512_f") else CRASHING


def crashing_convolution(network: nn.Module, channels: int) -> str | None:
    """Return the name of a convolution whose backward crashes torch 2.15 on a CPU, channels-last; None for none.

    1x1, with a stride, of fewer than `channels` input channels: a segmentation fault, or a double free.
    """
    for name, part in network.named_modules():
        is_strided = isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1) and max(part.stride) > 1
        if is_strided and part.in_channels < channels:
            return name
    return None

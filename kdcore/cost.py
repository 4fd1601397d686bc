"""What a network costs where it is deployed."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcore.layout import evaluating
from kdcore.reused import deployed_parameters


def multiply_adds(network: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-adds of convolutions and matrix products for one image of [H,W]; torch counts two FLOPs for each."""
    images = next(network.parameters()).new_zeros(1, 3, *image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(network):
        network(images)
    return counter.get_total_flops() // 2


def deployed_bytes(network: nn.Module) -> int:
    """Bytes of the network's tensors as they are trained, running statistics included: those of its weights' file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def deployment_cost(network: nn.Module, image_size: tuple[int, int]) -> dict[str, float]:
    """{parameters, gmacs: for one image of [H,W], megabytes} of a deployed network."""
    return {
        "parameters": deployed_parameters(network),
        "gmacs": multiply_adds(network, image_size) / 1e9,
        "megabytes": deployed_bytes(network) / 1e6,
    }

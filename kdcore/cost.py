"""What a network costs where it is deployed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcore.layout import evaluating
from kdcore.reporting import optional
from kdcore.reused import deployed_parameters


def multiply_adds(network: nn.Module, image_size: tuple[int, int]) -> int:
    """Count the multiply-adds of convolutions and matrix products for one image of [H,W].

    torch counts two FLOPs for each. Its counter hooks the gradient of whatever a module is passed, and fails on a
    parameter under `no_grad` (pytorch#134242), so the network runs with tensors that require no gradient.
    """
    images = next(network.parameters()).new_zeros(1, 3, *image_size)
    tensors = {name: t.detach() for name, t in (*network.named_parameters(), *network.named_buffers())}
    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(network):
        torch.func.functional_call(network, tensors, (images,))
    return counter.get_total_flops() // 2


def deployed_bytes(network: nn.Module) -> int:
    """Sum the bytes of the network's tensors, running statistics included, as in its file of weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def deployment_cost(network: nn.Module, image_size: tuple[int, int], say: Callable[[str], None]) -> dict[str, float]:
    """Return {parameters, megabytes, gmacs: for one image of [H,W]} of a deployed network.

    gmacs is left out, and `say` is told why, if torch's counter cannot follow the network.
    """
    cost = {"parameters": deployed_parameters(network), "megabytes": deployed_bytes(network) / 1e6}
    with optional("the student's multiply-adds are", say):
        cost["gmacs"] = multiply_adds(network, image_size) / 1e9
    return cost

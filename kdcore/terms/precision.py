"""The number format of every loss: float32 at least, whatever the networks ran in.

Layers of terms are networks and run as those do, except embeddings whose cosines or correlations are the loss: these
cost nothing, and otherwise values rounded to bfloat16 would be compared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(x: Tensor) -> Tensor:
    """Promote float16 and bfloat16 to float32; float64 (tests) and integers stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a loss with its tensors promoted by `at_least_float32` and with autocast off.

    Promotion alone would not do: inside autocast a matrix product of two float32 tensors is still taken in bfloat16.
    """

    @functools.wraps(function)
    def promoted(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next(a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # meta has no autocast
            return function(*map(_promote, args), **{name: _promote(a) for name, a in kwargs.items()})

    return promoted


@full_precision
def embed(layer: nn.Module, features: Tensor) -> Tensor:
    """Return a layer's output for features in at least float32, under autocast too."""
    embedded: Tensor = layer(features)
    return embedded


def _promote(argument: Any) -> Any:
    return at_least_float32(argument) if isinstance(argument, Tensor) else argument

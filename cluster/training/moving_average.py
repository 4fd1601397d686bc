"""The moving average of a student's weights, which is evaluated and deployed in its place."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import Tensor, nn


class MovingAverage(ModelEmaV3):
    """timm's moving average, to the bit, but a tensor with several names, as tied weights have, moves once a step.

    timm goes by the names of the state, and would let such a tensor, as CoaT has some, decay once for each of them.
    """

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move every floating-point tensor of the average towards the model's, and copy every other."""
        pairs = list(zip(tensors_once(self.module), tensors_once(model), strict=True))
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)
        moving = [pair for pair in pairs if pair[0].is_floating_point()]
        self._foreach_lerp_([average for average, _ in moving], [value for _, value in moving], weight=1.0 - decay)


def tensors_once(network: nn.Module) -> list[Tensor]:
    """Return the tensors of a network's state, each once, in the order of their first names."""
    return list({id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}.values())

"""The rendering of a whole batch at once, on any device: used on a GPU, where the number of kernels counts.

That number does not grow with the batch. On a CPU `pipelines.loaders.render_pictures` gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loaders.operations import Operator
from pipelines.views.plan import Views
from pipelines.views.policy import ViewPolicy


class BatchRenderer:
    """Renders pictures all at once.

    mean, std [3W]: of a row's values in [0, 1]; noise [H+,W+,3]: what erased boxes are filled with, None for the mean.
    """

    def __init__(self, policy: ViewPolicy, mean: Tensor, std: Tensor, noise: Tensor | None) -> None:
        self.policy, self.mean, self.std, self.noise = policy, mean, std, noise
        self.device = mean.device
        self.operator: Operator | None = None
        if policy.augment is not None:
            self.operator = Operator(policy.fill, bicubic=policy.interpolation == "bicubic")

    def __call__(self, images: Tensor, views: Views, partner_rows: NDArray[np.int64]) -> Tensor:
        """Return a network's input: uint8 [N,H,W,3] of N views -> float32 [B,H,3W]; see `Finish`."""
        pictures = self._develop(images, views)
        if self.policy.erase_first:
            self._erase(pictures, views)
        if self.policy.mixes:
            num, partners = len(partner_rows), pictures[self._put(partner_rows)]
            share, boxes = self._put(views.mix_lambda[:num]), self._put(views.mix_box[:num])
            pictures = mix(pictures[:num], partners, share, boxes)
        if views.erase is not None and not self.policy.erase_first:
            self._erase(pictures, views)
        return pictures

    def _develop(self, images: Tensor, views: Views) -> Tensor:
        """Apply operations, colours and normalisation: uint8 [N,H,W,3] -> float32 [N,H,3W]."""
        if self.operator is not None:
            assert views.operations is not None, "drawn where the policy has a policy of operations"
            assert views.arguments is not None, "drawn with the operations"
            images = self.operator(images, views.operations, views.arguments)
        pixels = images.float().div_(255)
        if views.colour is not None:
            change_colour(pixels, self._put(views.colour))
        return pixels.flatten(2).sub_(self.mean).div_(self.std)

    def _erase(self, pictures: Tensor, views: Views) -> None:
        """Fill the boxes of those pictures [B,H,3W] that have one, in place: with 0, or with a window of the noise."""
        assert views.erase is not None, "asked for where boxes were drawn"
        rows = np.flatnonzero(views.erase[: len(pictures), 2])
        chosen = self._put(rows)
        fill = torch.zeros((), device=self.device) if self.noise is None else self._noise(views, rows)
        boxes = self._put(views.erase[rows])
        pictures[chosen] = torch.where(inside(boxes, *pictures.shape[1:]), fill, pictures[chosen])

    def _noise(self, views: Views, rows: NDArray[np.int64]) -> Tensor:
        """Return the windows of the noise field that the views in the given rows take: [.,H,3W]."""
        assert self.noise is not None, "there is a field where the policy fills with noise"
        assert views.noise_offset is not None, "a view with boxes says where their noise is"
        offset = self._put(views.noise_offset[rows].astype(np.int64))
        y = offset[:, 0, None] + torch.arange(self.policy.height, device=self.device)
        x = offset[:, 1, None] + torch.arange(self.policy.width, device=self.device)
        return self.noise[y[:, :, None], x[:, None, :]].flatten(2)

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def change_colour(pixels: Tensor, colour: Tensor) -> None:
    """Set every pixel to clip(matrix x + offset, 0, 1), in place: pixels [N,H,W,3] in [0, 1], colour [N,3,4].

    Written out by channel: a matrix product's rounding may depend on the size of the batch.
    """
    planes = pixels.permute(3, 0, 1, 2).contiguous()
    for channel in range(3):
        weights = colour[:, channel, :, None, None].unbind(dim=1)  # four of [N,1,1]
        total = planes[0] * weights[0]
        total.add_(planes[1] * weights[1]).add_(planes[2] * weights[2]).add_(weights[3])
        pixels[..., channel] = total.clamp_(0, 1)


def inside(boxes: Tensor, height: int, row_values: int) -> Tensor:
    """Return which values, 3 per pixel, lie in the picture's box (y, x, h, w): [B,4] -> bool [B,height,row_values]."""
    y, x, h, w = boxes[:, :, None].unbind(dim=1)  # each [B,1]
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(row_values, device=boxes.device) // 3
    in_rows = (rows >= y) & (rows < y + h)
    in_columns = (columns >= x) & (columns < x + w)
    return in_rows[:, :, None] & in_columns[:, None, :]


def mix(pictures: Tensor, partners: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """Return share * picture + (1 - share) * partner; where there is a box, the partner inside and the picture outside.

    pictures, partners [B,H,3W]; share [B]; boxes [B,4], area 0 for none.
    """
    has_box = (boxes[:, 2] * boxes[:, 3] > 0)[:, None, None]
    blend = torch.where(has_box, 1.0, share[:, None, None])
    blended = blend * pictures + (1 - blend) * partners
    return torch.where(inside(boxes, *pictures.shape[1:]), partners, blended)

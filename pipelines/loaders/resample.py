"""Shears, translations and rotations of pictures as Pillow computes them, for a batch at once: used on a GPU.

torch's and torchvision's own are not used, as they give other pictures: their cubic kernel has another sharpness (a of
-0.75, where Pillow's is -1), they blend the border with the fill colour, and round to nearest where Pillow truncates.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.views import exact
from pipelines.views.operations import Kind

SIDEWAYS = (Kind.SHEAR_X, Kind.TRANSLATE_X)  # pixels keep their row
UPRIGHT = (Kind.SHEAR_Y, Kind.TRANSLATE_Y)  # pixels keep their column
MOVING = (*SIDEWAYS, *UPRIGHT, Kind.ROTATE)


def matrices(kinds: NDArray[np.int64], arguments: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Return the matrices (a, b, c, d, e, f) [B,6] by which a place of the result finds its source.

    (x, y) -> (a x + b y + c, d x + e y + f), where pixels have their centres at halves.
    """
    found = np.tile(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), (len(kinds), 1))
    for kind, column in ((Kind.SHEAR_X, 1), (Kind.TRANSLATE_X, 2), (Kind.SHEAR_Y, 3), (Kind.TRANSLATE_Y, 5)):
        found[kinds == kind, column] = arguments[kinds == kind]
    turned = kinds == Kind.ROTATE
    sin, cos = (np.round(values, 15) for values in exact.sin_cos(-arguments[turned] * (pi / 180)))
    x, y = width / 2, height / 2
    columns = (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)
    found[turned] = np.stack(columns, axis=1)
    return found


@dataclass(frozen=True)
class Resampler:
    """Takes each place of a picture from elsewhere in it.

    fill: the colour of places that come from outside; bicubic: how places are interpolated, else bilinearly.
    """

    fill: tuple[int, int, int]
    bicubic: bool

    def __call__(self, images: Tensor, matrix: Tensor, *, sideways: bool, upright: bool) -> Tensor:
        """Return the pictures uint8 [B,H,W,3] with each place taken from where its matrix, float64 [B,6], says.

        Interpolated in float64 among the pixels of the picture, whose border is continued, and truncated. sideways,
        upright: whether the matrices move places along rows, along columns; an axis along which nothing moves needs no
        interpolation.
        """
        height, width = images.shape[1:3]
        planes = images.permute(0, 3, 1, 2).flatten(2)  # [B,3,HW]: what is the same for three colours is computed once
        fill = torch.tensor(self.fill, dtype=torch.uint8, device=images.device)[:, None, None]
        a, b, c, d, e, f = matrix[:, :, None, None, None].unbind(dim=1)  # each [B,1,1,1]
        across = torch.arange(width, dtype=torch.float64, device=images.device) + 0.5
        down = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] + 0.5
        x, y = a * across + b * down + c, d * across + e * down + f
        outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
        columns, right = self._neighbours(x, width, sideways)
        rows, below = self._neighbours(y, height, upright)
        starts = [row * width for row in rows]
        lines = [_blend([_read(planes, start + column) for column in columns], right) for start in starts]
        pixels = _blend(lines, below).clamp_(0, 255).to(torch.uint8)
        return torch.where(outside, fill, pixels).permute(0, 2, 3, 1)

    def _neighbours(self, place: Tensor, side: int, moves: bool) -> tuple[list[Tensor], Tensor]:
        """Return the pixels along one axis that a place [B,1,h,W] lies among, and its distance past the middle."""
        place = place - 0.5
        whole = place.floor()
        offsets = ((-1, 0, 1, 2) if self.bicubic else (0, 1)) if moves else (0,)
        return [(whole + offset).clamp_(0, side - 1).long() for offset in offsets], place - whole


def _read(planes: Tensor, place: Tensor) -> Tensor:
    """Return the colours at the places [B,1,h,W] of pictures uint8 [B,3,HW]: int16 [B,3,h,W]."""
    found = planes.gather(2, place.flatten(2).expand(-1, 3, -1))
    return found.view(-1, 3, *place.shape[2:]).to(torch.int16)


def _blend(values: list[Tensor], behind: Tensor) -> Tensor:
    """Return the line through two values, or the cubic through four (Keys' kernel with a = -1), `behind` the middle.

    In the order of Pillow's own sums, each product and each sum rounded by itself, for the same bits; those of whole
    values are exact, and cheaper as int16.
    """
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return (values[1] - values[0]).double().mul_(behind).add_(values[0])
    v0, v1, v2, v3 = values
    linear, quadratic, cubic = v2 - v0, (v0 - v1).mul_(2).add_(v2).sub_(v3), (v1 - v0).sub_(v2).add_(v3)
    total = cubic.double().mul_(behind)
    for coefficient in (quadratic, linear):
        total.add_(coefficient.double()).mul_(behind)
    return total.add_(v1.double())

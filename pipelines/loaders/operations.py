"""The operations of augmentation policies on pictures as Pillow does them, for a batch at once: used on a GPU.

On a CPU Pillow itself does them (`pipelines.loaders.pillow_operations`). Pictures of one group of kinds are changed
together, so that the number of kernels does not grow with the batch, and each by arithmetic on only itself, so that it
does not depend on the others. torchvision's functions on tensors are not used: they take one argument for all pictures,
and differ from Pillow in the mean grey of a contrast, in the blur, and in all that is interpolated (see
`pipelines.loaders.resample`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.loaders.resample import SIDEWAYS, UPRIGHT, Resampler, matrices
from pipelines.views.operations import Kind

Arguments = NDArray[np.float64]
_LUMA = (19595, 38470, 7471)  # of R, G, B, in 65536ths


class Operator:
    """Applies operations to pictures.

    fill: the colour of what comes from outside; bicubic: how places are interpolated, else bilinearly.
    """

    def __init__(self, fill: tuple[int, int, int], bicubic: bool) -> None:
        self._resample = Resampler(fill, bicubic)

    def __call__(self, images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
        """Return the pictures uint8 [N,H,W,3] after the operations kinds [N,T], arguments [N,T], turn by turn."""
        images = images.clone()
        for turn in range(kinds.shape[1]):
            for group, change in self._groups():
                rows = np.flatnonzero(np.isin(kinds[:, turn], group))
                if len(rows):
                    chosen = torch.from_numpy(rows).to(images.device, non_blocking=True)
                    images[chosen] = change(images[chosen], kinds[rows, turn], arguments[rows, turn])
        return images

    def _groups(self) -> tuple[tuple[tuple[Kind, ...], Callable[[Tensor, NDArray[np.int64], Arguments], Tensor]], ...]:
        """Return the kinds that are applied together, with the function that applies them."""
        return (
            (SIDEWAYS, self._geometric),
            (UPRIGHT, self._geometric),
            ((Kind.ROTATE,), self._geometric),
            (tuple(VALUE_TABLES), value_tables),
            ((Kind.AUTO_CONTRAST,), auto_contrast),
            ((Kind.EQUALIZE,), equalize),
            ((Kind.CONTRAST,), contrast),
            ((Kind.COLOR,), color),
            ((Kind.SHARPNESS,), sharpness),
            ((Kind.BLUR,), blur),
        )

    def _geometric(self, images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
        """Return the pictures sheared, shifted or rotated; all kinds move places along the same axes."""
        matrix = torch.from_numpy(matrices(kinds, arguments, *images.shape[1:3])).to(images.device, non_blocking=True)
        sideways, upright = kinds[0] not in UPRIGHT, kinds[0] not in SIDEWAYS
        return self._resample(images, matrix, sideways=sideways, upright=upright)


def _column(arguments: Arguments, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return one number per picture, in the shape of pictures: [B] -> [B,1,1,1]."""
    return torch.from_numpy(arguments).to(dtype).to(images.device, non_blocking=True)[:, None, None, None]


# A new value for each of 256: those that follow only from kind and argument, [B,1] -> [B,256].
_VALUES = np.arange(256)
VALUE_TABLES: dict[Kind, Callable[[Arguments], NDArray[np.generic]]] = {
    Kind.BRIGHTNESS: lambda factor: np.clip(_VALUES.astype(np.float32) * factor.astype(np.float32), 0, 255),
    Kind.POSTERIZE: lambda bits: _VALUES & -(2 ** (8 - bits.astype(np.int64))),
    Kind.SOLARIZE: lambda threshold: np.where(threshold > _VALUES, _VALUES, 255 - _VALUES),
    Kind.SOLARIZE_ADD: lambda add: np.where(_VALUES < 128, np.minimum(255, _VALUES + add), _VALUES),
    Kind.INVERT: lambda _: 255 - _VALUES,
}


def value_tables(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures with every value replaced as its picture's kind and argument say."""
    tables = np.empty((len(kinds), 256), dtype=np.uint8)
    for kind, table in VALUE_TABLES.items():
        tables[kinds == kind] = table(arguments[kinds == kind, None]).astype(np.uint8)
    return _look_up(images, torch.from_numpy(tables).to(images.device, non_blocking=True)[:, None].expand(-1, 3, -1))


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Return table[value] of every value; tables uint8 [B,3,256]."""
    return tables.reshape(-1).index_select(0, _places(images).view(-1)).view(images.shape)


def _places(images: Tensor) -> Tensor:
    """Return the number of each value's own entry among [B,3,256]: int32, in the shape of the pictures."""
    first = torch.arange(0, len(images) * 768, 256, dtype=torch.int32, device=images.device)
    return images.to(torch.int32) + first.view(-1, 1, 1, 3)


def auto_contrast(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures with each channel's values stretched so that they reach from 0 to 255."""
    values = images.flatten(1, 2)
    low, high = (v.double()[:, :, None] for v in (values.amin(dim=1), values.amax(dim=1)))  # [B,3,1]
    scale = torch.full_like(high, 255) / (high - low)  # a number divided by a tensor would be rounded twice
    identity = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = identity * scale + -low * scale
    tables = torch.where(high > low, stretched, identity).clamp_(0, 255).to(torch.uint8)
    return _look_up(images, tables)


def equalize(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures with values changed so that each channel uses all 256 about equally often."""
    counts = torch.zeros(len(images) * 768, dtype=torch.int64, device=images.device)
    one = torch.ones((), dtype=torch.int64, device=images.device).expand(images.numel())
    counts = counts.scatter_add_(0, _places(images).view(-1).long(), one).view(-1, 3, 256)
    brightest = images.flatten(1, 2).amax(dim=1).long()
    total = images.shape[1] * images.shape[2]
    step = (total - counts.gather(2, brightest[:, :, None])) // 255  # [B,3,1]
    below = counts.cumsum(dim=2) - counts
    identity = torch.arange(256, device=images.device)
    tables = torch.where(step > 0, (step // 2 + below) // step.clamp(min=1), identity)
    return _look_up(images, tables.clamp_(0, 255).to(torch.uint8))


def contrast(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures moved away from, or towards, their own mean grey."""
    mean = grey(images).double().mean(dim=(1, 2)).add_(0.5).floor_().float()
    return _blend(mean[:, None, None, None], images, arguments)


def color(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures moved away from, or towards, their greys."""
    return _blend(grey(images).float().unsqueeze(3), images, arguments)


def grey(images: Tensor) -> Tensor:
    """Return the luma of pictures uint8 [B,H,W,3] as int32 [B,H,W], by Pillow's whole numbers."""
    red, green, blue = images.to(torch.int32).unbind(dim=3)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000) >> 16


def sharpness(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures moved away from, or towards, their 3x3 means, in which the centre counts five times.

    The border is left as it is.
    """
    pixels = images.to(torch.int32)
    rows = pixels[:, :-2] + pixels[:, 1:-1] + pixels[:, 2:]
    total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = images.float()
    inner = total + 4 * pixels[:, 1:-1, 1:-1]
    smooth[:, 1:-1, 1:-1] = ((2 * inner + 13) // 26).float()
    return _blend(smooth, images, arguments)


def _blend(degenerate: Tensor, images: Tensor, arguments: Arguments) -> Tensor:
    """Return degenerate + factor * (picture - degenerate), truncated: in float32, as Pillow's blend."""
    factor = _column(arguments, images)
    return (degenerate + factor * (images.float() - degenerate)).clamp_(0, 255).to(torch.uint8)


def blur(images: Tensor, kinds: NDArray[np.int64], arguments: Arguments) -> Tensor:
    """Return the pictures after three box blurs along rows and three along columns, each rounded to whole numbers.

    A box of fractional width 2r + 1, in 24 binary places, whose sum makes a Gaussian of the standard deviation that the
    argument gives (Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box Filtering", 2011).
    """
    centre, near, far = (_column(weights, images, torch.float64) for weights in box_weights(arguments))
    pixels = images.double()
    for axis in (2, 2, 2, 1, 1, 1):
        pixels = _box_blur(pixels, (centre, near, far), axis)
    return pixels.to(torch.uint8)


def box_weights(deviations: Arguments) -> NDArray[np.float64]:
    """Return the weights of the box for each standard deviation of at most 2, as whole numbers of 2^-24: [3,B].

    They are for the centre, its two neighbours, and theirs.
    """
    assert np.all(deviations <= 2), "a wider box has more than five places"
    variance = np.float32(deviations) * np.float32(deviations) / np.float32(3)
    length = np.float32(np.sqrt(12.0 * variance.astype(np.float64) + 1))
    whole = np.floor((length - np.float32(1)) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) * (whole + 1)))
    radius = (whole + part).astype(np.float32)
    unit = np.float32(2**24)
    bulk = np.trunc(unit / (radius * 2 + 1)).astype(np.float64)
    edge = np.floor((2.0**24 - (2 * np.trunc(radius) + 1) * bulk) / 2)
    narrow = radius < 1
    return np.stack((bulk, np.where(narrow, edge, bulk), np.where(narrow, 0, edge)))


def _box_blur(pixels: Tensor, weights: tuple[Tensor, Tensor, Tensor], axis: int) -> Tensor:
    """Return the weighted means of five pixels along an axis, whose ends are continued: float64 whole numbers."""
    length = pixels.shape[axis]
    first, last = pixels.narrow(axis, 0, 1), pixels.narrow(axis, length - 1, 1)
    long = torch.cat((first, first, pixels, last, last), dim=axis)
    far_left, left, middle, right, far_right = (long.narrow(axis, start, length) for start in range(5))
    centre, near, far = weights
    total = centre * middle + near * (left + right) + far * (far_left + far_right)
    return total.add_(2.0**23).mul_(2.0**-24).floor_()

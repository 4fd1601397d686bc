"""The operations of the augmentation policies, as one table: what each does to a picture, and how strongly at a level.

A kind's argument is what Pillow is given for it. How pixels change is in `pipelines.loaders.operations`; which
operations a policy applies, how often and at which levels, in `pipelines.views.auto_augment`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Kind(IntEnum):
    """What is done to a picture; the comment gives the argument. The numbers are stored nowhere."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels to the side for each row
    SHEAR_Y = 2  # pixels down for each column
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4  # pixels
    ROTATE = 5  # degrees, counter-clockwise, about the centre
    BRIGHTNESS = 6  # factor: 0 gives black, 1 the picture itself
    COLOR = 7  # factor: 0 gives grey, 1 the picture itself
    CONTRAST = 8  # factor: 0 gives the picture's mean grey, 1 the picture itself
    SHARPNESS = 9  # factor: 0 gives a smoothed picture, 1 the picture itself
    POSTERIZE = 10  # leading bits that are kept
    SOLARIZE = 11  # values from here up are inverted
    SOLARIZE_ADD = 12  # added to values below 128, up to 255
    AUTO_CONTRAST = 13  # none: each channel is stretched to [0, 255]
    EQUALIZE = 14  # none: each channel's histogram is made flat
    INVERT = 15  # none
    BLUR = 16  # standard deviation of a Gaussian, in pixels


FACTORS = (Kind.BRIGHTNESS, Kind.COLOR, Kind.CONTRAST, Kind.SHARPNESS)


@dataclass(frozen=True)
class Operation:
    """A kind with its range of strengths: `low` at level 0, `high` at level 1, linear between.

    steps: how the part above `low` becomes a whole number; of_side: strengths are shares of the picture's width (for
    x) or height (for y), and become pixels; signed: the strength is negated for half of the pictures. A factor is 1
    plus the strength; any other kind's argument is the strength itself.
    """

    kind: Kind
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    of_side: bool = False
    steps: Literal["none", "truncated", "rounded"] = "none"

    def argument(self, level: Floats, negated: NDArray[np.bool_], height: int, width: int) -> Floats:
        """Return the argument of the kind at levels in [0, 1], for pictures of height x width: [B] -> [B]."""
        side = (width if self.kind is Kind.TRANSLATE_X else height) if self.of_side else 1
        above = level * ((self.high - self.low) * side)
        if self.steps != "none":
            above = np.trunc(above) if self.steps == "truncated" else np.rint(above)
        strength = self.low * side + above
        strength = np.where(negated, -strength, strength) if self.signed else strength
        return strength + 1 if self.kind in FACTORS else strength


def _signed(kinds: tuple[Kind, ...], high: float) -> tuple[Operation, ...]:
    return tuple(Operation(kind, high=high, signed=True) for kind in kinds)


_PLAIN = (Operation(Kind.AUTO_CONTRAST), Operation(Kind.EQUALIZE), Operation(Kind.INVERT))
_SHEARS = (Kind.SHEAR_X, Kind.SHEAR_Y)
_TRANSLATIONS = (Kind.TRANSLATE_X, Kind.TRANSLATE_Y)

# timm's 15 operations of RandAugment whose strength increases with the level, in its order (`-inc1`).
TIMM_INCREASING = (
    *_PLAIN,
    Operation(Kind.ROTATE, high=30, signed=True),
    Operation(Kind.POSTERIZE, low=4, high=0, steps="truncated"),
    Operation(Kind.SOLARIZE, low=256, high=0, steps="truncated"),
    Operation(Kind.SOLARIZE_ADD, high=110, steps="truncated"),
    *_signed((Kind.COLOR, Kind.CONTRAST, Kind.BRIGHTNESS, Kind.SHARPNESS), 0.9),
    *_signed(_SHEARS, 0.3),
    *(Operation(kind, high=0.45, signed=True, of_side=True) for kind in _TRANSLATIONS),
)

# The same without `-inc1`: at a higher level more bits are kept, fewer values inverted, and factors go from .1 to 1.9.
_DECREASING = {
    Kind.POSTERIZE: Operation(Kind.POSTERIZE, high=4, steps="truncated"),
    Kind.SOLARIZE: Operation(Kind.SOLARIZE, high=256, steps="truncated"),
    **{kind: Operation(kind, low=-0.9, high=0.9) for kind in FACTORS},
}
TIMM = tuple(_DECREASING.get(operation.kind, operation) for operation in TIMM_INCREASING)


def _with(operation: Operation) -> tuple[Operation, ...]:
    """Return timm's operations with another one of the same kind."""
    return tuple(operation if operation.kind == one.kind else one for one in TIMM)


# Those of timm's AutoAugment, whose four policies differ in how many bits are kept at a level.
TIMM_AUTO = {
    "v0": TIMM,
    "v0r": _with(Operation(Kind.POSTERIZE, low=4, high=0, steps="truncated")),
    "original": _with(Operation(Kind.POSTERIZE, low=4, high=8, steps="truncated")),
    "originalr": _with(Operation(Kind.POSTERIZE, low=4, high=0, steps="truncated")),
}


def _torchvision(
    shear: float, translations: tuple[Operation, ...], rotation: float, factor: float, bits: int
) -> tuple[Operation, ...]:
    """Return torchvision's 14 operations, in its order, with the strengths at the highest level.

    Half of 32 pixels are 16 here; in torchvision, whose levels are of float32, they are 15.
    """
    return (
        Operation(Kind.IDENTITY),
        *_signed(_SHEARS, shear),
        *translations,
        Operation(Kind.ROTATE, high=rotation, signed=True),
        *_signed(FACTORS, factor),
        Operation(Kind.POSTERIZE, low=8, high=bits, steps="rounded"),
        Operation(Kind.SOLARIZE, low=255, high=0),
        Operation(Kind.AUTO_CONTRAST),
        Operation(Kind.EQUALIZE),
    )


_RELATIVE = tuple(
    Operation(kind, high=150 / 331, signed=True, of_side=True, steps="truncated") for kind in _TRANSLATIONS
)
# torchvision's spaces of RandAugment, of AutoAugment, and of TrivialAugmentWide.
TORCHVISION = _torchvision(0.3, _RELATIVE, 30, 0.9, 4)
TORCHVISION_AUTO = (*TORCHVISION[1:], Operation(Kind.INVERT))
TORCHVISION_WIDE = _torchvision(
    0.99, tuple(Operation(kind, high=32, signed=True, steps="truncated") for kind in _TRANSLATIONS), 135, 0.99, 2
)

# 3-Augment of DeiT III: grey, inversion of the brighter half, or a blur of a standard deviation from .1 to 2.
THREE_AUGMENT = (
    Operation(Kind.COLOR, low=-1, high=-1),
    Operation(Kind.SOLARIZE, low=128, high=128),
    Operation(Kind.BLUR, low=0.1, high=2),
)

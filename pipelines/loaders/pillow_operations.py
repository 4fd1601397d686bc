"""The operations of augmentation policies by Pillow, which the originals use too: one picture at a time, on a CPU.

`pipelines.loaders.operations` gives the same bits for a whole batch on a GPU. Pillow's own `rotate` is not used: its
sine and cosine are the machine's, and the project's are the same on every one (`pipelines.views.exact`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from pipelines.loaders.operations import VALUE_TABLES
from pipelines.loaders.resample import MOVING, matrices
from pipelines.views.operations import Kind

Picture = NDArray[np.uint8]

_FUNCTIONS: dict[Kind, Callable[[Image.Image, float], Image.Image]] = {
    Kind.AUTO_CONTRAST: lambda image, _: ImageOps.autocontrast(image),
    Kind.EQUALIZE: lambda image, _: ImageOps.equalize(image),
    Kind.CONTRAST: lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    Kind.COLOR: lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    Kind.SHARPNESS: lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    Kind.BLUR: lambda image, deviation: image.filter(ImageFilter.GaussianBlur(deviation)),
}


class PillowOperator:
    """Applies operations to a picture.

    fill: the colour of what comes from outside; bicubic: how places are interpolated, else bilinearly.
    """

    def __init__(self, fill: tuple[int, int, int], bicubic: bool) -> None:
        self._fill = fill
        self._filter = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR

    def __call__(self, picture: Picture, kinds: NDArray[np.int64], arguments: NDArray[np.float64]) -> Picture:
        """Return the picture uint8 [H,W,3] after the operations kinds [T], arguments [T]; itself where none is due."""
        for kind, argument in zip(map(Kind, kinds.tolist()), arguments.tolist(), strict=True):
            if kind in VALUE_TABLES:
                picture = replace_values(picture, kind, argument)
            elif kind != Kind.IDENTITY:
                picture = np.asarray(self._change(Image.fromarray(picture), kind, argument))
        return picture

    def _change(self, image: Image.Image, kind: Kind, argument: float) -> Image.Image:
        if kind not in MOVING:
            return _FUNCTIONS[kind](image, argument)
        (matrix,) = matrices(np.array([kind]), np.array([argument]), image.height, image.width).tolist()
        return image.transform(image.size, Image.Transform.AFFINE, matrix, self._filter, fillcolor=self._fill)


def replace_values(picture: Picture, kind: Kind, argument: float) -> Picture:
    """Return the picture with every value replaced as kind and argument say, by Python's own look-up of bytes."""
    table = VALUE_TABLES[kind](np.array([[argument]])).astype(np.uint8)
    return np.frombuffer(picture.tobytes().translate(table.tobytes()), dtype=np.uint8).reshape(picture.shape)

"""One picture in every mode, as Pillow writes it and as rows of bytes, and what is put beside its pixels."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from tests.pipelines.pictures import picture

HEIGHT, WIDTH = 37, 53
Zoo = dict[str, Callable[[], bytes]]


def base(mode: str = "RGB", height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return the picture in a mode."""
    image = picture(height, width, 7)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        image.putalpha(Image.fromarray(np.tile(ramp, (height, 1))))
        return image
    if mode == "PA":
        return base("LA").convert("PA")
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.quantize(64) if mode == "P" else image.convert(mode)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> bytes:
    """Return the picture as Pillow writes it."""
    file = BytesIO()
    base(mode, *size).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data with an orientation."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def profile(space: str = "sRGB") -> bytes:
    """Return a colour profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()  # type: ignore[arg-type]


def wide(mode: str) -> np.ndarray:
    """Return the picture's rows in 16 bits, big-endian, with low bytes of their own."""
    pixels = np.asarray(base(mode)).reshape(HEIGHT, -1).astype(np.uint16)
    low = np.random.default_rng(5).integers(0, 256, pixels.shape)
    return (pixels * 256 + low).astype(">u2").view(np.uint8).reshape(HEIGHT, -1)


def packed_grey(bits: int) -> np.ndarray:
    """Return the picture in grey, so many bits a pixel."""
    values = np.asarray(base("L", width=52)) >> (8 - bits)
    parts = values.reshape(HEIGHT, -1, 8 // bits)
    shifts = np.arange(8 - bits, -1, -bits)
    return (parts << shifts).sum(axis=-1).astype(np.uint8)

"""Small image folders, made anew: smooth colourful pictures, in every shape and format that users bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(height: int, width: int, seed: int) -> Image.Image:
    """A photograph-like picture: coarse noise, enlarged, with a little fine noise on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


def exif_rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to view"
    return exif


def write_odd_folder(folder: Path) -> None:
    """root/train/{a,b}: JPEG and PNG of odd shapes, colour spaces and names."""
    for name in ("a", "b"):
        (folder / "train" / name).mkdir(parents=True)
    a, b = folder / "train" / "a", folder / "train" / "b"
    picture(60, 80, 1).save(a / "landscape.jpg", quality=90)
    picture(96, 50, 2).save(a / "portrait.jpg", quality=90)
    picture(1, 40, 3).save(a / "one_pixel_high.png")
    picture(33, 1, 4).save(a / "one_pixel_wide.png")
    picture(50, 70, 5).convert("L").save(a / "grey.jpg", quality=90)
    picture(64, 64, 6).convert("CMYK").save(a / "cmyk.jpg", quality=90)
    picture(57, 43, 7).save(b / "png_named.jpg", format="PNG")
    rgba = picture(40, 66, 8).convert("RGBA")
    rgba.putalpha(128)
    rgba.save(b / "rgba.png")
    picture(48, 90, 9).quantize(64).save(b / "palette.png")
    picture(72, 54, 10).save(b / "rotated_by_exif.jpg", quality=90, exif=exif_rotated())
    picture(81, 63, 11).save(b / "progressive.jpg", quality=85, progressive=True)
    picture(20, 24, 12).save(b / "small.jpg", quality=95, subsampling=0)
    picture(300, 420, 13).save(b / "large.jpg", quality=90)


def write_plain_folder(folder: Path, num: int = 12, side: int = 24) -> None:
    """root/train/{0,1,2}/: num square JPEGs, by turns."""
    for i in range(num):
        path = folder / "train" / str(i % 3) / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(side, side, 100 + i).save(path, quality=90)

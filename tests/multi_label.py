"""Pictures that show several things, or none: coloured squares in places of their own, one class a colour."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def write_pictures(root: Path, train: int = 64, val: int = 24, seed: int = 0) -> Path:
    """Pictures of 16x16 with a square of each class that they show, listed in root/{train,val}.csv."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        (root / "pictures").mkdir(parents=True, exist_ok=True)
        rows = []
        for number in range(count):
            shown = rng.random(3) < 0.4
            pixels = rng.integers(0, 90, size=(16, 16, 3))
            for place in np.flatnonzero(shown):
                pixels[2:14, 1 + 5 * place : 5 + 5 * place, 2 - place] += 160
            path = f"pictures/{split}-{number:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(root / path)
            rows.append((path, "|".join(name for name, there in zip(CLASSES, shown, strict=True) if there)))
        order = rng.permutation(count)
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("path", "labels"), *(rows[i] for i in order)])
    return root


def shown_in(root: Path, split: str) -> dict[str, str]:
    """{name of a picture: the classes that it shows, as the CSV has them}."""
    with (root / f"{split}.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["labels"] for row in csv.DictReader(file)}

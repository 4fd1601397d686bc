"""A folder of somebody's own code, as a test writes it outside the project: networks, a loss, a kind of images."""

from __future__ import annotations

from pathlib import Path

NETS = '''
"""Networks in plain torch: nothing of timm, nothing of this project."""
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.out = nn.Linear(2 * width, num_classes)

    def forward(self, images):
        return self.out(self.body(self.stem(images)).mean((2, 3)))


def build(num_classes, width=4):
    return Small(num_classes, width)


class Unasked(Small):
    def __init__(self, k, width=4):
        super().__init__(k, width)


class Wrong(Small):
    def forward(self, images):
        return self.out(self.bodi(self.stem(images)).mean((2, 3)))


class Narrow(Small):
    def forward(self, images):
        return self.out(images.mean((2, 3)))


def absent(num_classes):
    with open("no-such-weights.pt", "rb") as file:
        return file


def nothing(num_classes):
    return {"network": None}


def deaf(num_classes):
    return Small(7)


number = 3
'''
LOSSES = '''
"""A loss on the logits, and one on features."""
from typing import Literal

from kdcore.batch import Needs
from kdcore.terms import Term, TermInputs


class LogitL1(Term):
    """The mean absolute difference of the logits."""

    term: Literal["logit_l1"] = "logit_l1"
    scale: float = 1.0

    def needs(self) -> Needs:
        return Needs(teacher_logits=True)

    def loss(self, inputs: TermInputs):
        return self.scale * (inputs.student_logits.float() - inputs.teacher_logits.float()).abs().mean(1)
'''
SOURCE = '''
"""Images whose class is a word of their name: <split>_files/red-001.png, listed in <split>.names."""
import numpy as np
import pyarrow as pa

from pipelines.data.kinds import Kind, register
from pipelines.data.listing import Listing, canonical_paths, in_order_of_id, number_classes


def find(place, split):
    return tuple(file for file in place.list_files() if file.name == f"{split}.names")


def list_samples(place, split, files):
    with place.open(files[0].name) as file:
        names = bytes(file.read()).decode().split()
    classes, labels = number_classes(pa.array([n.split("-")[0] for n in names], pa.large_string()), place.root)
    locations = pa.array([f"{split}_files/{n}" for n in names], pa.large_string())
    sizes = {found.name: found for found in place.list_files(f"{split}_files")}
    bytes_of = [next(f.num_bytes for name, f in sizes.items() if name.endswith(n)) for n in names]
    paths = canonical_paths(split, classes, labels, pa.array([n.split("-", 1)[1] for n in names], pa.large_string()))
    table = pa.table({"path": paths, "label": labels, "num_bytes": pa.array(bytes_of, pa.int64()),
                      "location": locations})
    return Listing(classes, in_order_of_id(table))


register(Kind("names", find, list_samples))
'''


def write_own_code(folder: Path) -> Path:
    """Write `own_nets.py`, `own_losses.py` and the package `own_images` into a folder; return it."""
    (folder / "own_images").mkdir(parents=True)
    (folder / "own_nets.py").write_text(NETS)
    (folder / "own_losses.py").write_text(LOSSES)
    (folder / "own_images" / "__init__.py").write_text("from own_images import names\n")
    (folder / "own_images" / "names.py").write_text(SOURCE)
    return folder


def write_own_images(classes: Path, folder: Path) -> Path:
    """Write the images of class folders in the form that `own_images` reads; return the folder."""
    for split in ("train", "val"):
        files = folder / f"{split}_files"
        files.mkdir(parents=True)
        names = []
        for path in sorted((classes / split).glob("*/*.png")):
            names.append(f"{path.parent.name}-{path.name}")
            (files / names[-1]).write_bytes(path.read_bytes())
        (folder / f"{split}.names").write_text("\n".join(names) + "\n")
    return folder


def plugin(folder: Path, text: str, name: str = "my_plugin") -> str:
    """Write a plug-in of one file; return its path."""
    path = folder / f"{name}.py"
    path.write_text(text)
    return str(path)

"""What to judge a network by: a folder of images, and which of the network's answers are right for each of them.

ImageNet's test sets name and choose their classes in their own ways:

    v2      ImageNet-V2: folders 0 to 999, the place of the class among the 1,000 in order of their names
    real    ReaL: the validation folder, with several right classes for an image, or none, in real.json beside it
    a, r    ImageNet-A and -R: some of the classes; a network chooses among those alone
    sketch  ImageNet-Sketch: the same classes
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.index import ImageIndex, build_index
from pipelines.files import read_json

Variant = Literal["v2", "real", "a", "r", "sketch"]
VARIANTS: tuple[str, ...] = get_args(Variant)
Answers = NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """Images and their right answers.

    answers [n,M]: for every image the right ones of `classes`, by number, filled up with -1; classes: names of those
    that may be answered; shown: their places among the network's own outputs, None where they are all of them.
    """

    index: ImageIndex
    answers: Answers
    classes: tuple[str, ...]
    shown: Answers | None = None


def own_target(index: ImageIndex) -> Target:
    """A split of the network's own data set."""
    return Target(index, index.labels.astype(np.int64)[:, None], index.classes)


def open_target(folder: Path, variant: str | None, classes: tuple[str, ...], cache_dir: Path) -> Target:
    """The images in folder/<class>/..., as `variant` labels them, for a network with these classes.

    Refused for a class of the folder that the network lacks, and without `variant` for any difference.
    """
    index = build_index(folder.resolve().parent, folder.resolve().name, cache_dir)
    openers: dict[str | None, Callable[[ImageIndex, tuple[str, ...]], Target]] = {
        "v2": numbered,
        "real": lambda index, classes: several(index, classes, folder.resolve().parent / "real.json"),
        "a": some,
        "r": some,
    }
    return openers.get(variant, same)(index, classes)


def same(index: ImageIndex, classes: tuple[str, ...]) -> Target:
    """Folders named like the classes, all of them."""
    if index.classes != classes:
        missing, surplus = sorted(set(classes) - set(index.classes)), sorted(set(index.classes) - set(classes))
        first = f"lacks {missing[0]!r}" if missing else f"has {surplus[0]!r}"
        raise Refused(
            f"the class folders of {index.root} differ from the network's {len(classes)} classes in "
            f"{len(missing) + len(surplus)} names (it {first}); if this is a test set of ImageNet, name it: --variant "
            f"{', '.join(VARIANTS)}"
        )
    return own_target(index)


def numbered(index: ImageIndex, classes: tuple[str, ...]) -> Target:
    """Folders named by the class's number."""
    wrong = [name for name in index.classes if not (name.isdecimal() and int(name) < len(classes))]
    if wrong or len(index.classes) != len(classes):
        raise Refused(
            f"{index.root}: --variant v2 wants folders 0 to {len(classes) - 1}, the network's {len(classes)} classes; "
            + (f"{wrong[0]!r} is none of them" if wrong else f"there are {len(index.classes)}")
        )
    numbers = np.array([int(name) for name in index.classes], dtype=np.int64)
    return Target(index, numbers[index.labels][:, None], classes)


def some(index: ImageIndex, classes: tuple[str, ...]) -> Target:
    """Folders of some of the classes, among which alone a network chooses."""
    place = {name: number for number, name in enumerate(classes)}
    unknown = [name for name in index.classes if name not in place]
    if unknown:
        raise Refused(
            f"{index.root}: the class {unknown[0]!r} ({len(unknown)} such) is none of the network's {len(classes)} "
            "classes; give the folder of the test set that belongs to them"
        )
    shown = np.array([place[name] for name in index.classes], dtype=np.int64)
    return Target(index, index.labels.astype(np.int64)[:, None], index.classes, shown)


def several(index: ImageIndex, classes: tuple[str, ...], path: Path) -> Target:
    """The network's classes with the right answers of every image from a file: [[class number, ...], ...], one list an
    image, in order of the number that ends its name (ILSVRC2012_val_00000001 is the first)."""
    same(index, classes)
    if not path.is_file():
        raise Refused(f"--variant real: {path} is missing; put the file of the ReaL labels beside the folder")
    lists: Any = read_json(path, "put the file of the ReaL labels there again")
    files = index.paths(np.arange(len(index)))
    rows = [lists[place_in(lists, file, path)] for file in files]
    widest = max(1, *map(len, rows))
    answers = np.array([row + [-1] * (widest - len(row)) for row in rows], dtype=np.int64)
    if answers.max() >= len(classes):
        raise Refused(f"{path} names class {answers.max()}, but the network has {len(classes)} classes")
    return Target(index, answers, classes)


def place_in(lists: list[list[int]], file: str, path: Path) -> int:
    """Which of the lists belongs to an image."""
    number = re.search(r"(\d+)$", Path(file).stem)
    if number is None or not 1 <= int(number[1]) <= len(lists):
        raise Refused(
            f"{file}: the name ends in no number from 1 to {len(lists)}, the images that {path.name} labels; give the "
            "original validation images"
        )
    return int(number[1]) - 1

"""What a network is judged by: a folder of images, and which of the network's answers are right for each of them.

ImageNet's test sets name and choose their classes in their own ways:

    v2      ImageNet-V2: folders 0 to 999, the place of the class among the 1,000 in order of their names
    real    ReaL: the validation folder, with several right classes for an image, or none, in real.json next to it
    a, r    ImageNet-A and -R: some of the classes; a network chooses only among those
    sketch  ImageNet-Sketch: the same classes
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data.labels import answers_of
from pipelines.data.source import Source
from pipelines.files import parse_json
from pipelines.places import Place

Variant = Literal["v2", "real", "a", "r", "sketch"]
VARIANTS: tuple[str, ...] = get_args(Variant)
_REAL = "real.json"
_WORDNET_ID = re.compile(r"n\d{8}")
Answers = NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """Images and their right answers.

    answers [n,M]: for every image the right ones of `classes`, by number, padded with -1; classes: names of those
    that may be answered; shown: their places among the network's own outputs, None where they are all of them.
    multi_label: whether all right answers of an image are to be given, not just one.
    """

    index: Source
    answers: Answers
    classes: tuple[str, ...]
    shown: Answers | None = None
    multi_label: bool = False


def own_target(index: Source) -> Target:
    """Return the target that is a split of the network's own data set."""
    index.require_labels("an evaluation")
    if index.multi_label:
        return Target(index, answers_of(index.label_lists), index.classes, multi_label=True)
    return Target(index, index.labels.astype(np.int64)[:, None], index.classes)


def open_target(index: Source, root: str, variant: str | None, classes: tuple[str, ...]) -> Target:
    """Return the images of a split, as `variant` labels them, for a network with these classes.

    root: the folder or URI that holds the split. Refused for images without labels, for a class of theirs that the
    network lacks, and without `variant` for any difference.
    """
    index.require_labels("an evaluation")
    if variant is not None:
        index.require_one_label(f"--variant {variant}")
    openers: dict[str | None, Callable[[Source, tuple[str, ...]], Target]] = {
        "v2": target_of_numbered_folders,
        "real": lambda index, classes: target_of_several_answers(index, classes, Place.of(root, "--data")),
        "a": target_of_some_classes,
        "r": target_of_some_classes,
    }
    return openers.get(variant, target_of_same_classes)(index, classes)


def target_of_same_classes(index: Source, classes: tuple[str, ...]) -> Target:
    """Return images of the network's classes, numbered in any order; Refused unless they are all of them."""
    if index.classes == classes:  # in which two may have one name, as ImageNet's cranes do
        return own_target(index)
    missing, surplus = sorted(set(classes) - set(index.classes)), sorted(set(index.classes) - set(classes))
    if missing or surplus:
        first = f"lacks {missing[0]!r}" if missing else f"has {surplus[0]!r}"
        raise Refused(
            f"the classes of {index.root} differ from the network's {len(classes)} classes in "
            f"{len(missing) + len(surplus)} names (it {first}); if this is a test set of ImageNet, name it: --variant "
            f"{', '.join(VARIANTS)}"
        )
    own, numbers = own_target(index), _numbers_in(classes, index.classes)
    return replace(own, answers=np.where(own.answers < 0, -1, numbers[own.answers]), classes=classes)


def target_of_numbered_folders(index: Source, classes: tuple[str, ...]) -> Target:
    """Return images in folders named by the class's number; Refused for another name or count."""
    wrong = [name for name in index.classes if not (name.isdecimal() and int(name) < len(classes))]
    if wrong or len(index.classes) != len(classes):
        raise Refused(
            f"{index.root}: --variant v2 wants folders 0 to {len(classes) - 1}, the network's {len(classes)} classes; "
            + (f"{wrong[0]!r} is not one of them" if wrong else f"there are {len(index.classes)}")
        )
    _warn_of_other_names("v2", classes)
    numbers = np.array([int(name) for name in index.classes], dtype=np.int64)
    return Target(index, numbers[index.labels][:, None], classes)


def target_of_some_classes(index: Source, classes: tuple[str, ...]) -> Target:
    """Return images in folders of some of the classes, the only ones that a network chooses from."""
    known = set(classes)
    unknown = [name for name in index.classes if name not in known]
    if unknown:
        raise Refused(
            f"{index.root}: the class {unknown[0]!r} ({len(unknown)} such) is not one of the network's {len(classes)} "
            "classes; give the folder of the test set that belongs to them"
        )
    shown = _numbers_in(classes, index.classes)
    return Target(index, index.labels.astype(np.int64)[:, None], index.classes, shown)


def target_of_several_answers(index: Source, classes: tuple[str, ...], place: Place) -> Target:
    """Return the images with the right answers of each from real.json at a place.

    That file holds [[class number, ...], ...], one list per image, in order of the number that ends the image's name
    (ILSVRC2012_val_00000001 is the first). Refused where the file is absent or names other classes.
    """
    target_of_same_classes(index, classes)
    _warn_of_other_names("real", classes)
    name = place.name_of(_REAL)
    if not place.has(_REAL):
        raise Refused(f"--variant real: {name} is missing; put the file of the ReaL labels beside the folder")
    lists: Any = parse_json(place.read(_REAL), name, "put the file of the ReaL labels there again")
    files = index.names(np.arange(len(index)))
    rows = [lists[_number_in(lists, file)] for file in files]
    widest = max(1, *map(len, rows))
    answers = np.array([row + [-1] * (widest - len(row)) for row in rows], dtype=np.int64)
    if answers.max() >= len(classes):
        raise Refused(f"{name} names class {answers.max()}, but the network has {len(classes)} classes")
    return Target(index, answers, classes)


def _warn_of_other_names(variant: str, classes: tuple[str, ...]) -> None:
    """Warn where a test set names classes by ImageNet's numbers, and the network's may be in another order."""
    if not all(map(_WORDNET_ID.fullmatch, classes)) or list(classes) != sorted(classes):
        warn_once(
            f"--variant {variant} takes ImageNet's number of a class for its place among the network's classes, whose "
            f"names ({classes[0]!r}, ...) are not WordNet ids in order: the results are right only if these classes "
            "are in ImageNet's order"
        )


def _numbers_in(classes: tuple[str, ...], names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the place of each of these names among the classes."""
    place = {name: number for number, name in enumerate(classes)}
    return np.array([place[name] for name in names], dtype=np.int64)


def _number_in(lists: list[list[int]], file: str) -> int:
    """Return the index of an image's list; Refused if its name does not end in the number of one."""
    number = re.search(r"(\d+)$", Path(file).stem)
    if number is None or not 1 <= int(number[1]) <= len(lists):
        raise Refused(
            f"{file}: the name does not end in a number from 1 to {len(lists)}, the images that {_REAL} labels; "
            "give the original validation images"
        )
    return int(number[1]) - 1

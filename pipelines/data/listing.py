"""What a container is found to hold before its images are looked at: the common language of all kinds of sources."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.places import Found, Place

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jp2", ".img")
)
HEIF_SUFFIXES = frozenset((".heic", ".heif"))  # of photographs that no loader reads
_COUNTED = 1000  # class numbers up to which a split may lack most: it may be a small part of a larger one
# {split: its names in files and folders}, of the splits that data sets have.
_ALIASES = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test",)}
CLASS_FILES = ("classes.txt", "classnames.txt")
_OF_A_SHARD = re.compile(r".*\d.*|of|.?")  # words of a file's name: 00000-of-00014-b42a775f, part3, a


@dataclass(frozen=True)
class Listing:
    """The samples of a split in order of id, as far as they are known without reading an image.

    classes: names in order of label, none if the images have no labels (then 0); table: path
    (<split>/<class>/<name>), label (or, for images that may have several, 0 and their class numbers in a list `labels`,
    see `pipelines.data.labels`), num_bytes, and where the bytes lie: `location` (a file relative to the root;
    absent: the path is it), or `file` and `offset`; files: those that the column `file` numbers; folders: {folder
    relative to the root: when it changed last} of single files; such files also have the columns mtime_ns, when the
    content was written, and on a disk ctime_ns, when anything about the file changed.
    """

    classes: tuple[str, ...]
    table: pa.Table
    files: tuple[Found, ...] = ()
    folders: Mapping[str, int] = field(default_factory=dict)


def require_file(path: str, status: os.stat_result) -> None:
    """Refuse anything but a regular file: reading a pipe waits for ever, and /dev/zero never ends."""
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{path} is not a regular file but a pipe, a device or the like; remove it")


def require_name(path: str) -> None:
    """Refuse a name that is not UTF-8, which neither an index nor a message can hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise Refused(f"{path!a} has a name that is not UTF-8; rename it") from error


def names_of(split: str) -> tuple[str, ...]:
    """Return the names of a split in files and folders."""
    return _ALIASES.get(split, (split,))


def names_of_others(split: str) -> frozenset[str]:
    """Return the names of a data set's other splits."""
    return frozenset(name for names in _ALIASES.values() for name in names).difference(names_of(split))


def is_name_of_split(name: str) -> bool:
    """Return whether a folder is called as splits of data sets are."""
    return any(name.lower() in names for names in _ALIASES.values())


def find_containers(place: Place, split: str, suffixes: tuple[str, ...]) -> tuple[Found, ...]:
    """Return the files with one of these suffixes that hold a split.

    These are all such files in a folder of the split's name; else those next to it, or in `data`, with the split as a
    word of their name: train.tar, imagenet-train-0001.tar, data/train-00000-of-00014.parquet. Refused where their
    names do not say whether they are one split.
    """
    for folder in names_of(split):
        if found := tuple(file for file in place.list_files(folder) if file.name.endswith(suffixes)):
            return found
    for folder in ("", "data"):
        files = [file for file in place.list_files(folder) if file.name.endswith(suffixes)]
        if found := _named_like(place, split, files, suffixes):
            return found
    return ()


def _named_like(place: Place, split: str, files: Sequence[Found], suffixes: tuple[str, ...]) -> tuple[Found, ...]:
    """Return the files whose name has the split as a word: without their shards' numbers, all are called alike.

    If some are called like the split alone, these; a file next to them (train_noisy) is of another split.
    """
    own = [tuple(_words(name)) for name in names_of(split)]
    groups: dict[tuple[str, ...], list[Found]] = {}
    for file in files:
        suffix = max((end for end in suffixes if file.name.endswith(end)), key=len)
        words = _words(PurePosixPath(file.name.removesuffix(suffix)).name)
        kept = tuple(word for word in words if any(word in name for name in own) or not _OF_A_SHARD.fullmatch(word))
        if kept in own or any((word,) in own for word in kept):
            groups.setdefault(kept, []).append(file)
    exact = next((name for name in own if name in groups), None)
    rest = [found[0] for words, found in groups.items() if words != exact]
    remedy = f"if it belongs to it, move all files of {split!r} into {place.name_of(split)}"
    if exact is not None:
        for file in rest:
            warn_once(f"{place.name_of(file.name)} is not read as part of the split {split!r}, for its name; {remedy}")
        return tuple(groups[exact])
    if len(rest) > 1:
        raise Refused(
            f"{place.name_of(rest[0].name)} and {rest[1].name} differ in more than a number, so that one may not be of "
            f"the split {split!r}; {remedy}, else rename it"
        )
    other = next((word for words in groups for word in words if word in names_of_others(split)), None)
    if is_name_of_split(split) and other is not None:
        raise Refused(
            f"{place.name_of(rest[0].name)} names two splits, {split!r} and {other!r}; {remedy}, else rename it"
        )
    return tuple(file for found in groups.values() for file in found)


def _words(name: str) -> list[str]:
    return re.split(r"[^a-z0-9]+", name.lower())


def find_class_list(place: Place, folders: Sequence[str]) -> tuple[Found, ...]:
    """Return the list of classes in the first of these folders that has one; empty if none has."""
    for folder in dict.fromkeys(folders):
        if found := [file for file in place.list_files(folder) if PurePosixPath(file.name).name in CLASS_FILES]:
            return (found[0],)
    return ()


def read_class_list(place: Place, name: str) -> list[str]:
    """Return the lines of a list of classes, without spaces around them and empty lines at the end."""
    try:
        text = place.read(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(f"{place.name_of(name)} is not text in UTF-8 ({error}); save it as UTF-8") from error
    return [line.strip() for line in text.rstrip().splitlines()]


def canonical_paths(split: str, classes: Sequence[str], labels: NDArray[np.int32], names: pa.Array) -> pa.Array:
    """Return <split>/<class>/<name> of every sample, as in an image folder of the same images.

    Without classes: <split>/<name>.
    """
    starts = [f"{split}/{name}/" for name in classes] or [f"{split}/"]
    prefixes = pa.array(starts, type=pa.large_string())
    nothing = pa.scalar("", type=pa.large_string())
    return pc.binary_join_element_wise(prefixes.take(pa.array(labels)), names.cast(pa.large_string()), nothing)


def in_order_of_id(table: pa.Table) -> pa.Table:
    """Return the rows by label, then by path; samples with one path by size and, where it is known, by checksum.

    So that the same images have the same ids, in whatever order and in however many files a container holds them.
    """
    keys = table.select([name for name in ("label", "path", "num_bytes", "crc32") if name in table.column_names])
    for column in (column for column in table.schema if pa.types.is_list(column.type)):
        texts = table[column.name].cast(pa.list_(pa.string()))  # an image may be there twice, with other labels
        keys = keys.append_column(column.name, pc.binary_join(texts, " "))
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    return table.take(order).combine_chunks()


def number_classes(names: pa.Array, root: str) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return (class names in order, the label of every sample) for the class name of every sample."""
    classes = sorted(pc.unique(names).to_pylist())
    if "" in classes:
        row = pc.index(names, pa.scalar("", names.type)).as_py()
        raise Refused(f"{root}: image {row + 1:,} of {len(names):,} has a class without a name; give it one")
    refuse_twins(classes, root)
    labels = pc.index_in(names, pa.array(classes, type=names.type)).to_numpy(zero_copy_only=False)
    return tuple(classes), labels.astype(np.int32)


def as_seen(name: str) -> str:
    """Return a name as people see it: one form of Unicode, no spaces at its ends."""
    return unicodedata.normalize("NFC", name).strip()


def refuse_twins(classes: Sequence[str], root: str) -> None:
    """Refuse two classes whose names are the same to the eye: they are meant to be one."""
    seen: dict[str, str] = {}
    for name in classes:
        if (twin := seen.setdefault(as_seen(name), name)) != name:
            raise Refused(
                f"{root} has the classes {twin!a} and {name!a}: the same to the eye, in another form of Unicode or "
                "with spaces; rename one"
            )


def name_numbers(labels: NDArray[np.int64], names: Sequence[str] | None, root: str) -> tuple[str, ...]:
    """Return the names of classes that are given as numbers; without names, the numbers in digits of one width.

    Refused for a number that has no name, and for numbers without names that are ids rather than counted from 0.
    """
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or (names is not None and highest >= len(names)):
        wrong = lowest if lowest < 0 else highest
        known = "labels count from 0" if names is None or lowest < 0 else f"there are names of {len(names)} classes"
        raise Refused(f"{root} has an image of class {wrong}, but {known}; correct the label, or the list of classes")
    num_found = len(np.unique(labels))
    if names is None and highest >= _COUNTED and 2 * num_found < highest + 1:
        raise Refused(
            f"{root} has images of {num_found:,} classes whose numbers go up to {highest:,}: ids rather than numbers "
            "counted from 0, each of which would be a class; give names instead of numbers, count them from 0, or "
            "name every class in a list (classes.txt beside tars, the names of a ClassLabel in Parquet)"
        )
    return tuple(names) if names is not None else tuple(f"{i:0{len(str(highest))}d}" for i in range(highest + 1))

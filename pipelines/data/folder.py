"""Image folders, on a disk or in a store: root/<split>/<class>/files, or root/<split>/files for those without labels.

Classes are in order of name, files in order of path within their class. Hidden files and folders (a leading dot) are
ignored.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from kdcore.errors import Refused
from pipelines.data.images import refusing_broken
from pipelines.data.listing import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    Listing,
    in_order_of_id,
    is_name_of_split,
    names_of,
    number_classes,
    refuse_twins,
    require_file,
    require_name,
)
from pipelines.places import Found, Place, is_hidden

_PACKED = (".zip", ".7z", ".rar")
MAX_FOLDERS_NAMED = 8  # folders that an error lists
_BESIDE = "lies beside the class folders; move it into one if it is an image, or else away"
_NO_IMAGE = (
    "is not called like an image, and there are no class folders; remove it, or put each class's images into a folder "
    "of its name"
)
_NO_CLASSES = "has no class folders; put each class's images into a folder of its name"
_LISTING = pa.schema(
    {
        "path": pa.large_string(),
        "label": pa.int32(),
        "num_bytes": pa.int64(),
        "mtime_ns": pa.int64(),
        "ctime_ns": pa.int64(),
    }
)


def list_folder(place: Place, split: str, _: tuple[Found, ...] = ()) -> Listing:
    """Return the files of root/split, in order of sample id.

    Of each file: path (relative to root, with forward slashes), label, num_bytes, mtime_ns, ctime_ns. Only one
    class at a time is held as Python objects. Refused where it is neither a folder of folders of files, nor one of
    images.
    """
    root = Path(place.root)
    folder = root / split
    require_root(root)
    if not folder.is_dir():
        raise Refused(_why_no_split(root, split))
    folders = {split: folder.stat().st_mtime_ns}
    if _holds_images_alone(folder):
        return Listing((), _list_class(folder, split, 0, folders), folders=folders)
    classes = tuple(_class_names(folder))
    refuse_twins(classes, str(folder))
    tables = [_list_class(folder / name, f"{split}/{name}", label, folders) for label, name in enumerate(classes)]
    return Listing(classes, pa.concat_tables(tables).combine_chunks(), folders=folders)


def _why_no_split(root: Path, split: str) -> str:
    """Return that a root has no such split, what it holds in its place, and what to do."""
    if (root.parent / split).is_dir():
        return f"{root} has no split {split!r}, but the folder around it has; give data.root={root.parent}"
    entries = sorted(_visible(root), key=lambda entry: entry.name)
    found = [entry.name for entry in entries if is_folder(entry)]
    shown = ", ".join(found[:MAX_FOLDERS_NAMED]) + (
        f" and {len(found) - MAX_FOLDERS_NAMED} more" if len(found) > MAX_FOLDERS_NAMED else ""
    )
    in_lists = "list the images in train.csv and val.csv there, with the columns path and label"
    if (
        found
        and not any(map(is_name_of_split, found))
        and all(_holds_image(root / name) for name in found[:MAX_FOLDERS_NAMED])
    ):
        return (
            f"{root} has no split {split!r}; its folders ({shown}) hold images, as class folders do: move part of each "
            f"(such as a fifth) into val/<class>/ and the rest into train/<class>/, or {in_lists}"
        )
    if not found and (image := next((entry.name for entry in entries if _is_called_image(entry.name)), None)):
        return (
            f"{root} has no split {split!r}, but images of its own, such as {image}: move them into train/<class>/ and "
            f"val/<class>/ (without class folders they have no labels), or {in_lists}"
        )
    if packed := next((entry.name for entry in entries if entry.name.lower().endswith(_PACKED)), None):
        return f"{root} has no split {split!r}, but {packed}, which is not read as it is; unpack it there"
    start = f"{root} has no split {split!r}; it holds {shown or 'no folders'}"
    if meant := _meant(split, entries):
        setting = "train_split" if split in names_of("train") else "val_split"
        return f"{start}: if {meant} is meant, add data.{setting}={meant} (to `data show`: --split {meant})"
    return (
        f"{start}: name one of them, or create {root / split}; data.train_split and data.val_split name splits (of "
        "`data show`: --split)"
    )


def _meant(split: str, entries: list[os.DirEntry[str]]) -> str | None:
    """Return the split among a folder's entries that is called as the wanted one is elsewhere; None without any.

    Validation images are often called a test set; a split in files has the name that these begin with.
    """
    if not is_name_of_split(split):
        return None
    names = [entry.name if is_folder(entry) else entry.name.partition(".")[0] for entry in entries]
    wanted = names_of("train") if split in names_of("train") else (*names_of("val"), *names_of("test"))
    return next((name for alias in wanted for name in names if name.lower() == alias), None)


def require_root(root: Path) -> None:
    """Refuse a folder of images that is not there, or a file in its place."""
    refuse_file(root)
    if not root.is_dir():
        raise Refused(
            f"data.root={root}: no such folder; set data.root to the folder that holds <split>/<class>/<images>"
        )


def refuse_file(root: Path) -> None:
    """Refuse a file, such as a tar, in the place of the folder that holds it."""
    if root.name.lower().endswith(_PACKED) and root.is_file():
        raise Refused(f"{root} is not read as it is; unpack it, and give the folder that holds its splits")
    if root.is_file():
        raise Refused(
            f"{root} is a file; give its folder, {root.parent}: a split is called by its file's name (train.csv, "
            "train.tar and train.parquet are the split train)"
        )


def list_store_folder(place: Place, split: str, _: tuple[Found, ...] = ()) -> Listing:
    """Return the files of <split>/<class>/ in an object store, in order of sample id; there, folders have no times.

    As on a disk, every file is an image, and one next to the class folders is refused, unless all are images and lie
    there: those have no labels.
    """
    found = place.list_below(split)
    parts = [file.name.split("/")[1:] for file in found]
    beside = [file for file, part in zip(found, parts, strict=True) if len(part) == 1]
    if not found:
        raise Refused(f"{place.name_of(split)} {_NO_CLASSES}")
    if len(beside) == len(found) and all(map(_is_called_image, (file.name for file in found))):
        classes: tuple[str, ...] = ()
        labels = np.zeros(len(found), dtype=np.int32)
    elif len(beside) == len(found):
        other = next(file.name for file in beside if not _is_called_image(file.name))
        raise Refused(f"{place.name_of(other)} {_why_no_image(other)}")
    elif beside:
        raise Refused(f"{place.name_of(beside[0].name)} {_BESIDE}")
    else:
        classes, labels = number_classes(pa.array([part[0] for part in parts], pa.large_string()), place.root)
    rows = [[file.name for file in found], labels, [file.num_bytes for file in found]]
    table = pa.table([*rows, [file.mtime_ns for file in found]], schema=_LISTING.remove(4))  # a store has one time
    return Listing(classes, in_order_of_id(table))


def _list_class(folder: Path, relative: str, label: int, folders: dict[str, int]) -> pa.Table:
    """Return the files of a class, in order; each folder on the way is added to `folders`, with its time."""
    found = sorted(_walk(folder, relative, folders, _folders_around(folder)))
    if not found:
        raise Refused(f"the class folder {folder} is empty; put images into it, or remove it")
    paths, *facts = zip(*found, strict=True)
    return pa.table([paths, [label] * len(found), *facts], schema=_LISTING)


def _holds_images_alone(folder: Path) -> bool:
    """Return whether a folder has images and nothing else: images without labels."""
    entries = _visible(folder)
    return bool(entries) and all(_is_called_image(entry.name) and not is_folder(entry) for entry in entries)


def _holds_image(folder: Path) -> bool:
    """Return whether an image lies in a folder."""
    return any(_is_called_image(entry.name) and not is_folder(entry) for entry in _visible(folder))


def _is_called_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _why_no_image(name: str, other_remedy: str = "") -> str:
    """Return what is wrong with a file that is not called like an image, in a folder without class folders."""
    if PurePosixPath(name).suffix.lower() in HEIF_SUFFIXES:
        return "is in HEIF, which no loader reads; convert it to a JPEG"
    return _NO_IMAGE + other_remedy


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one; Refused for a link that leads back to itself."""
    with refusing_broken(entry.path):
        return entry.is_dir()


def _folders_around(folder: Path) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of the split's folder, and of the data's, in which a class lies."""
    found = (place.stat() for place in (folder.parent, folder.parent.parent))
    return frozenset((status.st_dev, status.st_ino) for status in found)


def _class_names(folder: Path) -> list[str]:
    """Return the class folders of a split by name. Refused for anything that lies beside them, and without any."""
    entries = sorted(_visible(folder), key=lambda entry: entry.name)
    beside = [entry for entry in entries if not is_folder(entry)]
    if not entries:
        raise Refused(f"{folder} {_NO_CLASSES}")
    if len(beside) == len(entries):
        other = next(entry for entry in beside if not _is_called_image(entry.name))
        or_list = f", or list them with their labels in {folder}.csv (columns path, label)"
        raise Refused(f"{other.path} {_why_no_image(other.name, or_list)}")
    if beside:
        raise Refused(f"{beside[0].path} {_BESIDE}")
    return [entry.name for entry in entries]


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_hidden(entry.name)]
    except OSError as error:
        raise Refused(f"{folder} cannot be listed ({error.strerror}); make it readable, or remove it") from error
    for entry in found:
        require_name(entry.path)
    return found


def _walk(
    folder: Path, relative: str, folders: dict[str, int], around: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[tuple[str, int, int, int]]:
    """Yield (path, size, times of modification and of change) of every file below.

    Refused for a link to a folder around it.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in around:
        raise Refused(f"{folder} is a link to a folder that contains it, an endless loop; remove it")
    folders[relative] = status.st_mtime_ns  # before its files are listed
    for entry in _visible(folder):
        path = f"{relative}/{entry.name}"
        with refusing_broken(entry.path):  # a link may lead nowhere, or to itself
            status = entry.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(Path(entry.path), path, folders, around | {here})
        else:
            require_file(entry.path, status)
            yield path, status.st_size, status.st_mtime_ns, status.st_ctime_ns

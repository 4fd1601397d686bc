"""WebDataset tars, and tars of class folders: listed by their headers, the images read where they lie.

The labels of a split are in files next to the images (`pipelines.data.tar_samples`): `.cls` (a number or a name), or
`.json` (key `label`, with the original `filename` where it is kept). Or, where no image has such a file, they are the
class folders that the images lie in, within the split's folder if there is one. Tars without any of these hold images
without labels. Names of classes that are numbers come from classes.txt next to the tars, a line per class. No image
is skipped: what cannot be read is refused by name.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdcore.errors import Refused, one_line
from kdcore.remarks import warn_once
from pipelines.data.listing import (
    Listing,
    canonical_paths,
    find_class_list,
    find_containers,
    in_order_of_id,
    name_numbers,
    number_classes,
    read_class_list,
)
from pipelines.data.tar_folders import class_folders
from pipelines.data.tar_members import Member, members_of
from pipelines.data.tar_samples import is_number, lost, samples_of
from pipelines.places import Found, Place

_READ_BYTES = 8 * 2**20
_MOST = 2**31 - 1  # as the number of a class
# Suffixes of compressed tars, and how each is compressed: see `pipelines.data.compressed`.
CODECS = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tar.bz2": "bz2", ".tar.xz": "xz"}
_COLUMNS = pa.schema(
    {
        "folder": pa.large_string(),
        "name": pa.large_string(),
        "label": pa.large_string(),
        "original": pa.large_string(),
        "num_bytes": pa.int64(),
        "file": pa.int32(),
        "offset": pa.int64(),
    }
)


def find_tars(place: Place, split: str) -> tuple[Found, ...]:
    """Return the tars of a split, then the list of classes next to them, if any.

    Refused for compressed tars among them: part of the split would be left out.
    """
    found = find_containers(place, split, (".tar",))
    names = {file.name for file in found}
    for file in find_containers(place, split, tuple(CODECS)) if found else ():
        if _folder(file) == _folder(found[0]) and plain_name(file.name) not in names:
            raise Refused(
                f"{place.name_of(file.name)} is compressed and lies beside {PurePosixPath(found[0].name).name}, which "
                "is not; decompress all of them or none, or remove it"
            )
    return with_class_list(place, found)


def with_class_list(place: Place, tars: tuple[Found, ...]) -> tuple[Found, ...]:
    """Return tars, then the list of classes next to them or at the root, if any: it is part of their meaning."""
    return (*tars, *find_class_list(place, (_folder(tars[0]), ""))) if tars else ()


def is_tar(file: Found) -> bool:
    """Return whether a file of a split is a tar, compressed or not, rather than its list of classes."""
    return file.name.endswith((".tar", *CODECS))


def plain_name(name: str) -> str:
    """Return the name of a compressed tar once it is decompressed."""
    suffix = next(suffix for suffix in CODECS if name.endswith(suffix))
    return f"{name.removesuffix(suffix)}.tar"


def list_tars(place: Place, split: str, files: tuple[Found, ...], origin: Place | None = None) -> Listing:
    """Return the samples of these tars: with labels, or all of them without. Refused where some have none.

    origin: where the list of classes among the files lies, which is also the split's place in errors; None: where the
    tars lie.
    """
    tars, origin = tuple(file for file in files if is_tar(file)), origin or place
    with ThreadPoolExecutor() as threads:
        listed = list(threads.map(lambda number: _list_tar(place, tars, number), range(len(tars))))
    table = pa.concat_tables([tar.table for tar in listed]).combine_chunks()
    if not len(table):
        raise Refused(f"{place.name_of(tars[0].name)} holds no images; give tars of images (.jpg, .png, .webp, ...)")
    class_list = next((file.name for file in files if not is_tar(file)), None)

    def where(row: int) -> str:
        one = table.slice(row, 1).to_pylist()[0]
        return f"{place.name_of(tars[one['file']].name)}: {_path(one)}"

    given, names = table["label"].chunk(0), table["name"].chunk(0)
    if given.null_count < len(given):
        _refuse_lost(place, tars, listed)
        _refuse_unlabelled(given.is_null(), table, where, "put a .cls file beside it")
        classes, labels = _classes_of_labels(origin, given, class_list)
    else:
        folders, ways = class_folders(table["folder"].chunk(0), split, where)
        classes, labels = _classes_of_folders(origin, folders, table, where, class_list)
        names = pc.binary_join_element_wise(ways, names, pa.scalar("", pa.large_string()))
    paths = canonical_paths(split, classes, labels, pc.coalesce(table["original"].chunk(0), names))
    columns = table.select(["num_bytes", "file", "offset"]).append_column("label", pa.array(labels))
    return Listing(classes, in_order_of_id(columns.append_column("path", paths)), tars)


def _folder(file: Found) -> str:
    folder = str(PurePosixPath(file.name).parent)
    return "" if folder == "." else folder


@dataclass(frozen=True)
class _Listed:
    """What was found in one tar.

    table: a row per image, in its order; lost: samples whose `.json` has a label, without an image; from_json: whether
    the label of any image is from `.json`.
    """

    table: pa.Table
    lost: list[str]
    from_json: bool


def _list_tar(place: Place, tars: tuple[Found, ...], number: int) -> _Listed:
    name = place.name_of(tars[number].name)
    rows: list[tuple[str, str, str | None, str | None, int, int, int]] = []
    seen: set[str] = set()
    without_image: list[str] = []
    from_json = False
    with place.open(tars[number].name) as file, _refusing_damaged(name):
        # From a store, much is read at a time, including the images: a request per header would take longer.
        whole = file if place.is_local else BufferedReader(file, _READ_BYTES)

        def read(member: Member) -> bytes:
            whole.seek(member.offset)
            return bytes(whole.read(member.num_bytes))

        for sample in samples_of(members_of(whole, file.size(), name), read, name):
            if (image := sample.image) is None:
                without_image.append(sample.key)
                continue
            if str(image.path) in seen:
                raise Refused(f"{name}: {image.path} is there twice; write the tar again with one of the two")
            seen.add(str(image.path))
            from_json |= sample.from_json
            folder = "" if str(image.path.parent) == "." else str(image.path.parent).lstrip("/")
            original = PurePosixPath(sample.original).name if sample.original else None
            extent = image.num_bytes, number, image.offset
            rows.append((folder, image.path.name, sample.label, original, *extent))
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    arrays = [pa.array(values, type=kind) for values, kind in zip(columns, _COLUMNS.types, strict=True)]
    return _Listed(pa.table(arrays, _COLUMNS), without_image, from_json)


@contextmanager
def _refusing_damaged(name: str) -> Iterator[None]:
    """Turn what reading a tar raises into a Refused that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise Refused(f"{name} is not a whole tar ({error}); copy it again") from error
    except OSError as error:
        reason = error.strerror or one_line(error, length=None)
        raise Refused(f"{name} cannot be read ({reason}); repair its disk or store, then try again") from error


def _refuse_lost(place: Place, tars: tuple[Found, ...], listed: list[_Listed]) -> None:
    """Refuse a `.json` with a label and without an image, where `.json` holds the labels of others."""
    if not any(tar.from_json for tar in listed):
        return
    for file, tar in zip(tars, listed, strict=True):
        if tar.lost:
            raise lost(tar.lost[0], place.name_of(file.name), f"{tar.lost[0]}.json")


def _path(row: dict[str, Any]) -> str:
    """Return an image's name within its tar."""
    return f"{row['folder']}/{row['name']}".removeprefix("/")


def _refuse_unlabelled(unlabelled: pa.Array, table: pa.Table, where: Callable[[int], str], remedy: str) -> None:
    """Refuse a split some of whose images have no label, by the first of them, and the first that has one."""
    rows = np.flatnonzero(unlabelled.to_numpy(zero_copy_only=False))
    if len(rows):
        labelled = int(np.flatnonzero(~unlabelled.to_numpy(zero_copy_only=False))[0])
        other = _path(table.slice(labelled, 1).to_pylist()[0])
        raise Refused(f"{where(int(rows[0]))} has no label, but others have; {remedy}, or remove it ({other} has one)")


def _classes_of_labels(
    place: Place, labels: pa.Array, class_list: str | None
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return (class names, labels) for the text in files; where all of it is digits, they are numbers."""
    distinct = labels.dictionary_encode()
    texts = distinct.dictionary.to_pylist()
    if not all(map(is_number, texts)):
        _say_unread(place, class_list)
        return number_classes(labels, place.root)
    if (large := next((text for text in texts if _number(text) is None), None)) is not None:
        raise Refused(
            f"{place.root} has an image of class {large[:40]}, which is too large a number; give a name instead"
        )
    numbers = np.array([_number(text) for text in texts], dtype=np.int64)[distinct.indices.to_numpy()]
    given = read_class_list(place, class_list) if class_list else None
    if given is not None and "" in given:
        raise Refused(
            f"{place.name_of(str(class_list))} has nothing in line {given.index('') + 1}, and each line names the "
            "class of its number; give each class a name there"
        )
    return name_numbers(numbers, given, place.root), numbers.astype(np.int32)


def _number(text: str) -> int | None:
    """Return the number that a label is; None for one that is too large for a class."""
    digits = text.lstrip("+-0") or "0"
    if len(digits) > len(str(_MOST)) or int(digits) > _MOST:
        return None
    return -int(digits) if text.startswith("-") else int(digits)


def _classes_of_folders(
    place: Place, folders: pa.Array, table: pa.Table, where: Callable[[int], str], class_list: str | None
) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return (class names, labels) for the class folder of every image; no names where none has one."""
    unlabelled = pc.equal(folders, "")
    if pc.all(unlabelled).as_py():
        return (), np.zeros(len(folders), dtype=np.int32)
    _refuse_unlabelled(unlabelled, table, where, "put it into a class folder")
    _say_unread(place, class_list)
    return number_classes(folders, place.root)


def _say_unread(place: Place, class_list: str | None) -> None:
    """Log that a list is not read if classes have names of their own, which may differ from those in it."""
    if class_list is not None:
        warn_once(
            f"{place.name_of(class_list)} is not read: it names classes that are given as numbers, and those of "
            f"{place.root} are given by name"
        )

"""WebDataset tars, and tars of class folders: listed by their headers, the images read where they lie.

A sample is the files of one name before its first dot: one image, and its label as `.cls` (a number or a name), in
`.json` (key `label`, with the original `filename` where it is kept), or, where there is neither, as the class folder
that the image lies in. Tars without any of these hold images without labels. Names of classes that are numbers come
from classes.txt beside the tars, a line a class. No image is passed over: what cannot be read is refused by name.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.data.listing import (
    IMAGE_SUFFIXES,
    Listing,
    canonical_paths,
    find_containers,
    in_order_of_id,
    name_numbers,
    number_classes,
)
from pipelines.data.tar_members import Member, members_of
from pipelines.places import Found, Place

CLASS_FILES = ("classes.txt", "classnames.txt")
_READ_BYTES = 8 * 2**20
_MOST = 2**31 - 1  # as the number of a class
_JSON_LABELS = ("label", "cls", "class")
# Of compressed tars, and how each is compressed: see `pipelines.data.compressed`.
CODECS = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.zst": "zstd", ".tar.bz2": "bz2", ".tar.xz": "xz"}
# Images of kinds that the loaders do not decode alike, or under names that nothing here looks for.
_OTHER_IMAGES = (".gif", ".jfif", ".jpe", ".avif", ".heic", ".heif", ".jxl", ".tga", ".svg")
_COLUMNS = pa.schema(
    {
        "class": pa.large_string(),
        "in_folder": pa.bool_(),
        "name": pa.large_string(),
        "num_bytes": pa.int64(),
        "file": pa.int32(),
        "offset": pa.int64(),
    }
)


def find_tars(place: Place, split: str) -> tuple[Found, ...]:
    """Return the tars of a split. Refused for compressed tars among them: part of the split would be left out."""
    found = find_containers(place, split, (".tar",))
    names = {file.name for file in found}
    for file in find_containers(place, split, tuple(CODECS)) if found else ():
        lies_beside = PurePosixPath(file.name).parent == PurePosixPath(found[0].name).parent
        if lies_beside and plain_name(file.name) not in names:
            raise Refused(
                f"{place.name_of(file.name)} is compressed and lies beside {PurePosixPath(found[0].name).name}, which "
                "is not; decompress all of them or none, or remove it"
            )
    return found


def plain_name(name: str) -> str:
    """Return what a compressed tar is called when it is decompressed."""
    suffix = next(suffix for suffix in CODECS if name.endswith(suffix))
    return f"{name.removesuffix(suffix)}.tar"


def list_tars(place: Place, split: str, files: tuple[Found, ...]) -> Listing:
    """Return the samples of these tars: with labels, or all of them without. Refused where some have none."""
    with ThreadPoolExecutor() as threads:
        tables = list(threads.map(lambda number: _list_tar(place, split, files, number), range(len(files))))
    table = pa.concat_tables(tables).combine_chunks()
    if not len(table):
        raise Refused(f"{place.name_of(files[0].name)} holds no images; give tars of images (.jpg, .png, .webp, ...)")
    classes, labels = _classes(place, files, table)
    paths = canonical_paths(split, classes, labels, table["name"].chunk(0))
    listed = table.select(["num_bytes", "file", "offset"]).append_column("label", pa.array(labels))
    return Listing(classes, in_order_of_id(listed.append_column("path", paths)), files)


def _list_tar(place: Place, split: str, files: tuple[Found, ...], number: int) -> pa.Table:
    """Return class, name, num_bytes, file and offset of the samples of one tar, in its order."""
    name = place.name_of(files[number].name)
    rows: list[tuple[str, bool, str, int, int, int]] = []
    with place.open(files[number].name) as file:
        try:
            # Of a store, much at a time is read, images and all: a request a header would take longer.
            whole = file if place.is_local else BufferedReader(file, _READ_BYTES)
            seen: set[str] = set()
            for _, members in groupby(members_of(whole, file.size(), name), key=lambda member: member.key):
                sample = list(members)
                image = _only_image(sample, name)
                label, original = _label(sample, whole, name)
                if image is None:
                    _refuse_lost(sample, label, name)
                    continue
                if str(image.path) in seen:
                    raise Refused(f"{name}: {image.path} is there twice; write the tar again with one of the two")
                seen.add(str(image.path))
                folder, own = _inside(image.path, split)
                own = PurePosixPath(original).name if original else own if label is None else image.path.name
                rows.append((label or folder, label is None, own, image.num_bytes, number, image.offset))
        except (tarfile.TarError, EOFError) as error:
            raise Refused(f"{name} is not a whole tar ({error}); copy it again") from error
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise Refused(f"{name} cannot be read ({reason}); mend its disk or store, then try again") from error
    columns: list[Sequence[Any]] = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    return pa.table(
        [pa.array(values, type=kind) for values, kind in zip(columns, _COLUMNS.types, strict=True)], _COLUMNS
    )


def _only_image(sample: list[Member], name: str) -> Member | None:
    images = [member for member in sample if member.extension in IMAGE_SUFFIXES]
    if len(images) > 1:
        raise Refused(f"{name}: {images[0].path} and {images[1].path} are two images of one sample; keep one of them")
    return images[0] if images else None


def _refuse_lost(sample: list[Member], label: str | None, name: str) -> None:
    """Refuse a sample without an image that is read, if it is one: it has a label, or an image of another kind."""
    other = next((member for member in sample if member.extension in _OTHER_IMAGES), None)
    if other is not None:
        raise Refused(
            f"{name}: {other.path} is an image of a kind that is not read; convert it to JPEG or PNG, or remove it"
        )
    if label is not None:
        found = ", ".join(str(member.path) for member in sample)
        raise Refused(
            f"{name}: the sample {sample[0].key} has a label and no image (only {found}); put its image (.jpg, .png, "
            ".webp, ...) beside it in the tar, or remove it"
        )


def _label(sample: list[Member], file: Any, name: str) -> tuple[str | None, str | None]:
    """Return (the label as text, the image's original name) as the files beside it say; None where they do not."""
    label = original = None
    for member in sample:
        if member.extension == ".cls":
            try:
                label = _content(member, file).decode().strip()
            except UnicodeDecodeError as error:
                raise Refused(f"{name}: {member.path} is not text in UTF-8 ({error}); mend or remove it") from error
        elif member.extension == ".json":
            try:
                facts = json.loads(_content(member, file))
            except ValueError as error:
                raise Refused(f"{name}: {member.path} is not JSON ({error}); mend or remove it") from error
            if isinstance(facts, dict):
                original = facts.get("filename", original)
                found = next((facts[key] for key in _JSON_LABELS if facts.get(key) is not None), None)
                if not isinstance(original, str | None):
                    raise Refused(f"{name}: {member.path} gives {original!r} as filename; give a text, or leave it out")
                if isinstance(found, list | dict):
                    raise Refused(
                        f"{name}: {member.path} gives {json.dumps(found)[:100]} as a label; give one number or name, "
                        "and images with several labels as Parquet or a CSV"
                    )
                label = str(found) if label is None and found is not None else label
    return label, original


def _content(member: Member, file: Any) -> bytes:
    file.seek(member.offset)
    return bytes(file.read(member.num_bytes))


def _inside(path: PurePosixPath, split: str) -> tuple[str, str]:
    """Return (class folder, name within it) of an image of a tar that was made from an image folder."""
    parts = list(path.parts)
    while parts[0] in (".", "/") or (parts[0] == split and len(parts) > 1):
        del parts[0]
    return (parts[0], "/".join(parts[1:])) if len(parts) > 1 else ("", parts[0])


def _classes(place: Place, files: tuple[Found, ...], table: pa.Table) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Return (class names, labels) of listed tars.

    Labels that are all digits are numbers, unless they are names of folders. No names where no sample has a label.
    """
    names = table["class"].chunk(0)
    unlabelled = pc.equal(names, "")
    if pc.all(unlabelled).as_py():
        return (), np.zeros(len(table), dtype=np.int32)
    if pc.any(unlabelled).as_py():
        first = table.filter(unlabelled).slice(0, 1).to_pylist()[0]
        raise Refused(
            f"{place.name_of(files[first['file']].name)}: {first['name']} has no label, but others have; put a .cls "
            "file beside it, or it into a class folder"
        )
    labels = names.unique().to_pylist()
    if pc.any(table["in_folder"]).as_py() or not all(text.isascii() and text.isdecimal() for text in labels):
        return number_classes(names, place.root)
    folder = str(PurePosixPath(files[0].name).parent)
    if (largest := max(map(int, labels))) > _MOST:
        raise Refused(f"{place.root} has an image of class {largest}, which is too large a number; give a name instead")
    numbers = names.cast(pa.int64()).to_numpy()
    found = [file for where in dict.fromkeys(("" if folder == "." else folder, "")) for file in place.list_files(where)]
    class_file = next((file.name for file in found if PurePosixPath(file.name).name in CLASS_FILES), None)
    given = place.read(class_file).decode().splitlines() if class_file else None
    return name_numbers(numbers, given, place.root), numbers.astype(np.int32)

"""The samples within a tar: which of its files are images, and what the files next to an image say about it.

Consecutive files of one name before the first dot are a sample, as in WebDataset: one image, and with it a `.cls` or
`.json`. Without either, files are those of an image folder: each that is not a sidecar is an image of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from kdcore.errors import Refused
from pipelines.data.listing import IMAGE_SUFFIXES
from pipelines.data.tar_members import Member

Read = Callable[[Member], bytes]
_JSON_LABELS = ("label", "cls", "class")
# What lies next to images and is not one itself. Anything else that could be an image is taken for one, and then read
# or refused: a list of the suffixes of images has no end.
_SIDECARS = """
    cls cls2 class count id index idx inx json jsn jsonl txt text transcript caption bbox csv tsv lst md rst xml yaml
    yml html htm log ini db py sh npy npz pt pth pkl pickle pyd mat mp msg msgpack cbor ten tb h5 safetensors parquet
    wav mp3 flac mp4 md5 sha256
"""
_SIDECAR_SUFFIXES = frozenset(f".{suffix}" for suffix in _SIDECARS.split())
_PAPERS = frozenset(("readme", "license", "licence", "copying", "authors", "citation", "manifest", "notice"))


@dataclass(frozen=True)
class TarSample:
    """A sample as its files show it.

    image: None if there is only a `.json` with a label, which may be no sample; label: as text, None where no file
    gives one; original: the image's name before it was put into the tar, where `.json` has it as `filename`; from_json:
    whether `.json` gives the label.
    """

    key: str
    image: Member | None
    label: str | None = None
    original: str | None = None
    from_json: bool = False


def samples_of(members: Iterable[Member], read: Read, name: str) -> Iterator[TarSample]:
    """Yield the samples of a tar's files. read: returns the content of one; name: of the tar, for an error.

    Refused for files that cannot be one sample, and for labels that are not valid, or that contradict each other.
    """
    for key, group in groupby(members, key=lambda member: member.key):
        files = list(group)
        facts = [file for file in files if file.extension in (".cls", ".json")]
        images = _images(files, name) if not facts else _only_image(files, name)
        if not facts:
            yield from (TarSample(key, image) for image in images)
        elif images:
            yield _described(key, images[0], facts, read, name)
        elif any(file.extension == ".cls" for file in facts):
            raise lost(key, name, ", ".join(str(file.path) for file in files))
        elif any(_has_json_label(file, read) for file in facts):
            yield TarSample(key, None, from_json=True)


def is_number(label: str) -> bool:
    """Return whether a label is a class's number, be it one that no class has (-1)."""
    return re.fullmatch("[+-]?[0-9]+", label) is not None


def lost(key: str, name: str, found: str) -> Refused:
    """Return the refusal of a sample of a tar that has a label and no image. found: its files."""
    return Refused(
        f"{name}: the sample {key} has a label and no image (only {found}); put its image (.jpg, .png, .webp, ...) "
        "beside it in the tar, or remove it"
    )


def _images(files: list[Member], name: str) -> list[Member]:
    """Return the images among files without `.cls` and `.json`. Refused for two that are called the same.

    cat.0.jpg and cat.1.jpg are two samples; 0.jpg and 0.mask.png, or 0.png, may be one.
    """
    images = [file for file in files if not _is_sidecar(file)]
    stems = [str(file.path.with_suffix("")) for file in images]
    if len(images) > 1 and (images[0].key in stems or len(set(stems)) < len(stems)):
        raise _two_images(images, name)
    return images


def _only_image(files: list[Member], name: str) -> list[Member]:
    """Return the image of a sample that has a `.cls` or `.json`, if any: the one known as such, or its only content."""
    known = [file for file in files if file.extension in IMAGE_SUFFIXES]
    if len(known) > 1:
        raise _two_images(known, name)
    others = [file for file in files if not _is_sidecar(file)]
    return known or (others if len(others) == 1 else [])


def _two_images(images: list[Member], name: str) -> Refused:
    return Refused(f"{name}: {images[0].path} and {images[1].path} are two images of one sample; keep one of them")


def _is_sidecar(file: Member) -> bool:
    return file.extension in _SIDECAR_SUFFIXES or file.path.name.lower() in _PAPERS


def _described(key: str, image: Member, facts: list[Member], read: Read, name: str) -> TarSample:
    """Return an image with what the files next to it say about it; Refused where two of them give two labels."""
    label = source = original = None
    for file in sorted(facts, key=lambda file: file.extension):  # a `.cls` first: it says nothing else
        if file.extension == ".cls":
            found: str | None = _text(file, read, name) or None
        else:
            found, filename = _json_facts(file, read, name)
            original = filename or original
        if source is None and found is not None:
            label, source = found, file
        elif source is not None and found is not None and _differ(str(label), found):
            raise Refused(
                f"{name}: {source.path} gives the label {label!r}, and {file.path} {found!r}; remove the wrong one"
            )
    return TarSample(key, image, label, original, source is not None and source.extension == ".json")


def _differ(label: str, other: str) -> bool:
    """Return whether two labels of an image contradict each other: two numbers, or two names."""
    if is_number(label) and is_number(other):
        return label.lstrip("+0") != other.lstrip("+0")
    return label != other and is_number(label) == is_number(other)


def _text(file: Member, read: Read, name: str) -> str:
    try:
        return read(file).decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise Refused(f"{name}: {file.path} is not text in UTF-8 ({error}); repair or remove it") from error


def _json_facts(file: Member, read: Read, name: str) -> tuple[str | None, str | None]:
    """Return (label, original name) of a sample's `.json`, None where it does not say."""
    try:
        facts = json.loads(read(file))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{name}: {file.path} is not JSON ({error}); repair or remove it") from error
    if not isinstance(facts, dict):
        return None, None
    filename = facts.get("filename")
    if not isinstance(filename, str | None):
        raise Refused(f"{name}: {file.path} gives {filename!r} as filename; give a text, or leave it out")
    label = next((facts[key] for key in _JSON_LABELS if facts.get(key) is not None), None)
    if isinstance(label, list | dict):
        raise Refused(
            f"{name}: {file.path} gives {json.dumps(label)[:100]} as a label; give one number or name, and images with "
            "several labels as Parquet or a CSV"
        )
    if isinstance(label, float):  # as pandas writes the numbers of a column that has gaps
        if not label.is_integer():
            raise Refused(f"{name}: {file.path} gives {label} as a label; give a whole number, or a name")
        label = int(label)
    return (None if label is None else str(label)), filename


def _has_json_label(file: Member, read: Read) -> bool:
    """Return whether a `.json` without an image has a label as a sample's does; it may be about anything."""
    try:
        return _json_facts(file, read, "")[0] is not None
    except Refused:
        return False

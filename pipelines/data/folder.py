"""What lies in an image folder, and whether it is an image: the part of indexing that touches files."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pyarrow as pa
from PIL import Image

from kdcore.errors import Refused

# What both loaders decode alike. MPO is a camera's JPEG with further pictures behind the first.
_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


_LISTING = pa.schema({"path": pa.large_string(), "label": pa.int32(), "num_bytes": pa.int64(), "mtime_ns": pa.int64()})


def list_files(root: Path, split: str) -> tuple[tuple[str, ...], pa.Table]:
    """The class names and the files of root/split: path (relative to root, with forward slashes), label, num_bytes,
    mtime_ns, in order of sample id. Refused where it is no folder of folders of files.

    A class at a time is held as Python objects, never the whole.
    """
    folder = root / split
    if not root.is_dir():
        raise Refused(f"the data folder {root} does not exist; give the folder that holds <split>/<class>/<images>")
    if not folder.is_dir():
        there = ", ".join(sorted(entry.name for entry in _visible(root) if entry.is_dir())) or "no folders"
        raise Refused(f"{root} has no split {split!r}; it holds {there}: name one of them, or create {folder}")
    classes = tuple(_class_names(folder))
    tables = [_list_class(folder / name, f"{split}/{name}", label) for label, name in enumerate(classes)]
    return classes, pa.concat_tables(tables).combine_chunks()


def _list_class(folder: Path, relative: str, label: int) -> pa.Table:
    found = sorted(_walk(folder, relative))
    if not found:
        raise Refused(f"the class folder {folder} is empty; put images into it, or remove it")
    paths, sizes, times = zip(*found, strict=True)
    return pa.table([paths, [label] * len(found), sizes, times], schema=_LISTING)


def _class_names(folder: Path) -> list[str]:
    entries = sorted(_visible(folder), key=lambda entry: entry.name)
    for entry in entries:
        if not entry.is_dir():
            raise Refused(f"{entry.path} lies beside the class folders; move it into one, or remove it")
    if not entries:
        raise Refused(f"{folder} has no class folders; put each class's images into a folder of its name")
    return [entry.name for entry in entries]


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _walk(folder: Path, relative: str) -> Iterator[tuple[str, int, int]]:
    """(path, size, time of modification) of every file below."""
    for entry in _visible(folder):
        path = f"{relative}/{entry.name}"
        if entry.is_dir():
            yield from _walk(Path(entry.path), path)
        else:
            with _naming(Path(entry.path)):  # a link may lead nowhere
                status = entry.stat()
            yield path, status.st_size, status.st_mtime_ns


def inspect_file(path: Path) -> tuple[int, int, int]:
    """(height, width, crc32 of the content) of an image file, read once. Refused where it is not a whole image."""
    with _naming(path):
        content = path.read_bytes()
    with _naming(path), Image.open(BytesIO(content)) as image:
        width, height = image.size
        kind, mode = image.format, image.mode
        # A JPEG that does not end in its end marker is cut short, or has something appended: decoding tells which.
        if kind == "JPEG" and b"\xff\xd9" not in content[-64:]:
            image.load()
    if kind not in _FORMATS or mode not in _MODES:
        raise Refused(
            f"{path} is a {kind} image of mode {mode}, which the loaders do not decode alike; convert it to JPEG or PNG"
        )
    return height, width, zlib.crc32(content)


def decode_file(path: Path, height: int, width: int) -> Image.Image:
    """The picture in RGB, of the size the index has. Refused where the file has another, or cannot be decoded."""
    with _naming(path), Image.open(path) as image:
        if image.size == (width, height):
            return image.convert("RGB")
        found = f"{image.height}x{image.width}"
    raise Refused(f"{path} is {found} pixels, but {height}x{width} in the index; build the index again")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns what Pillow raises about a file into a Refused that names it."""
    try:
        yield
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition(" <_io")[0]
        raise Refused(
            f"{path} cannot be read as an image ({reason}); repair or remove it, then build the index again"
        ) from error

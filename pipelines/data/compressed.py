"""Compressed tars: no image in one can be read by itself, so they are decompressed once, next to the index."""

from __future__ import annotations

import json
import lzma
import shutil
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa

from kdcore.errors import Refused, one_line
from pipelines.data.listing import find_containers
from pipelines.data.tars import CODECS, is_tar, plain_name, with_class_list
from pipelines.files import make_folder, remove_unfinished, write_whole
from pipelines.places import Found, Place

_READ_BYTES = 8 * 2**20


def find_compressed(place: Place, split: str) -> tuple[Found, ...]:
    """Return the compressed tars of a split, then the list of classes next to them, if any."""
    return with_class_list(place, find_containers(place, split, tuple(CODECS)))


def decompress(place: Place, files: tuple[Found, ...], folder: Path, report: Callable[[int], object]) -> Place:
    """Return a place within `folder` with these tars decompressed, those that are there already left as they are.

    files: as `find_compressed` returns them. report: called with the compressed bytes that are done. Refused for a tar
    that is not whole, and where there is less room than the compressed tars take.
    """
    files = tuple(filter(is_tar, files))
    _refuse_one_name(place, files)
    facts = [[file.name, file.num_bytes, file.mtime_ns] for file in files]
    target = folder / f"tars-{sha256(json.dumps([place.root, facts]).encode()).hexdigest()[:32]}"
    make_folder(target, "output_dir")
    for made in {(target / plain_name(file.name)).parent for file in files}:
        if made.is_dir():
            remove_unfinished(made, lambda _: True)  # nothing else writes there, and nothing writes these tars now
    missing = [file for file in files if not (target / plain_name(file.name)).exists()]
    needed, free = sum(file.num_bytes for file in missing), shutil.disk_usage(target).free
    if free < needed:
        raise Refused(
            f"{place.root} is compressed and is decompressed to {folder}, which has {free / 2**30:.1f} GiB free for "
            f"more than {needed / 2**30:.1f} GiB; name a larger disk as output_dir (or with --index)"
        )
    for file in missing:
        with place.open(file.name) as compressed:
            parts = _decompressed(compressed, _codec(file.name), place.name_of(file.name), report)
            write_whole(target / plain_name(file.name), partial(_write_parts, parts))
    return Place.of(target, "output_dir")


def plain_files(place: Place, files: tuple[Found, ...]) -> tuple[Found, ...]:
    """Return the tars that `decompress` has put into a place, then the list of classes, which it left where it is."""
    found = [
        (name, (Path(place.root) / name).stat()) for name in (plain_name(file.name) for file in files if is_tar(file))
    ]
    plain = tuple(Found(name, status.st_size, status.st_mtime_ns) for name, status in found)
    return plain + tuple(file for file in files if not is_tar(file))


def _refuse_one_name(place: Place, files: tuple[Found, ...]) -> None:
    """Refuse two compressed tars whose names differ only in the compression: which of them is meant?"""
    names: dict[str, str] = {}
    for file in files:
        if (other := names.setdefault(plain_name(file.name), file.name)) != file.name:
            raise Refused(
                f"{place.name_of(other)} and {PurePosixPath(file.name).name} are both {plain_name(file.name)} when "
                "they are decompressed; rename one, or remove it where they are the same"
            )


def _decompressed(compressed: pa.NativeFile, codec: str, name: str, report: Callable[[int], object]) -> Iterator[bytes]:
    """Yield the decompressed content in parts. Refused, with the name, where it cannot be decompressed."""
    done = 0
    plain: Any
    try:
        with lzma.open(compressed) if codec == "xz" else pa.CompressedInputStream(compressed, codec) as plain:
            while part := plain.read(_READ_BYTES):
                yield part
                report(compressed.tell() - done)
                done = compressed.tell()
    except (OSError, EOFError, lzma.LZMAError, pa.ArrowInvalid) as error:
        reason = one_line(error, length=None)
        raise Refused(f"{name} is not a whole compressed file, or cannot be read ({reason}); fetch it again") from error


def _write_parts(parts: Iterable[bytes], file: BinaryIO) -> None:
    file.writelines(parts)


def _codec(name: str) -> str:
    return next(codec for suffix, codec in CODECS.items() if name.endswith(suffix))

"""The Parquet files of a split: their footers, which agree for all that have rows, and reads whose errors name a file.

A file without rows has columns of any kind, or none: only its name says that it belongs to the split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdcore.errors import Refused, one_line
from kdcore.remarks import warn_once
from pipelines.places import Found, Place

LABELS = ("label", "fine_label", "labels")  # fine_label: CIFAR-100's


@dataclass(frozen=True)
class Footer:
    """What a file's footer says. file: its name in the place; name: its full name, in errors; groups: (rows, bytes)."""

    file: str
    name: str
    schema: pa.Schema
    groups: tuple[tuple[int, int], ...]

    @property
    def num_rows(self) -> int:
        """The number of rows in the file."""
        return sum(rows for rows, _ in self.groups)


@contextmanager
def refusing_damaged(name: str) -> Iterator[None]:
    """Turn what reading a Parquet file raises into a Refused that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise Refused(
            f"{name} is not a whole Parquet file, or cannot be read ({one_line(error)}); fetch it again, or repair its "
            "disk or store"
        ) from error


def open_parquet(file: pa.NativeFile, name: str, **options: Any) -> pq.ParquetFile:
    """Return a Parquet file, its footer read; Refused, by its name, if it is not one."""
    with refusing_damaged(name):
        return pq.ParquetFile(file, **options)


def read_footers(place: Place, files: Sequence[Found]) -> tuple[Footer, ...]:
    """Return the footer of every file."""
    footers = []
    for found in files:
        name = place.name_of(found.name)
        with place.open(found.name) as file:
            opened = open_parquet(file, name)
            groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
            sizes = tuple((group.num_rows, group.total_byte_size) for group in groups)
            footers.append(Footer(found.name, name, opened.schema_arrow, sizes))
    return tuple(footers)


def with_rows(footers: Sequence[Footer]) -> Sequence[Footer]:
    """Return the files that have rows; the first if none has."""
    return [footer for footer in footers if footer.num_rows] or footers[:1]


def columns_of(footers: Sequence[Footer]) -> tuple[str, str | None]:
    """Return the names of (the column of images, that of labels if any), the same in all files that have rows.

    Refused for files without images or with several columns of them, and for one that differs from the others.
    """
    first, *others = with_rows(footers)
    image = _image_column(first)
    for footer in others:
        if (other := _image_column(footer)) != image:
            raise Refused(
                f"{footer.name} has its images in the column {other!r}, and {first.name} in {image!r}; rename"
            )
    given = (name for footer in (first, *others) for name in LABELS if name in footer.schema.names)
    label = next(given, None)
    lacking = next((footer.name for footer in (first, *others) if label not in footer.schema.names), None)
    if label is not None and lacking is not None:
        raise Refused(f"{lacking} has no column {label!r}, which other files of the split have; add or remove it")
    twice = next((footer.name for footer in (first, *others) if footer.schema.names.count(label) > 1), None)
    if twice is not None:
        raise Refused(f"{twice} has the column {label!r} twice; keep one of them")
    if label is None and (more := [name for name in first.schema.names if name != image]):
        warn_once(
            f"{first.name} has the columns {', '.join(more)} beside its images and none of {', '.join(LABELS)}: its "
            "images have no labels; rename the column that holds them"
        )
    return image, label


def class_names(footers: Sequence[Footer], column: str) -> list[str] | None:
    """Return the names of the classes that Hugging Face's libraries keep in the metadata; None where no file has them.

    Refused for files that have different ones.
    """
    source, names = None, None
    for footer in footers:
        own = _class_names(footer, column)
        if names is None:
            source, names = footer, own
        elif own is not None and own != names and source is not None:
            number = next((n for n, (a, b) in enumerate(zip(names, own, strict=False)) if a != b), None)
            differ = f"{len(own)} classes, and {source.name} {len(names)}"
            if number is not None:
                differ = f"{own[number]!r} as class {number}, and {source.name} {names[number]!r}"
            raise Refused(f"{footer.name} has {differ}; write the files of a split with one list of classes")
    return names


def _image_column(footer: Footer) -> str:
    images: list[str] = [field.name for field in footer.schema if _holds_images(field.type)]
    if len(images) != 1:
        found = f"columns {', '.join(footer.schema.names)}, {len(images) or 'none'} of which hold images"
        raise Refused(f"{footer.name} has {found}; give Parquet with one column of struct {{bytes, path}}")
    return images[0]


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(footer: Footer, column: str) -> list[str] | None:
    stored = (footer.schema.metadata or {}).get(b"huggingface")
    try:
        feature = json.loads(stored).get("info", {}).get("features", {}).get(column, {}) if stored else {}
        names = (feature.get("feature") or feature).get("names")  # of a list, those of its items
    except (ValueError, AttributeError) as error:
        raise Refused(
            f"{footer.name} has something other than features under 'huggingface' in its metadata ({error}); write it "
            "again, or without that"
        ) from error
    return [str(name) for name in names] if names else None

"""Lists of images: a CSV of path and label, and ImageNet's flat validation folder with its published labels."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data.images import refusing_broken
from pipelines.data.labels import COLUMN, NAMES, number_lists, read_names, split_names
from pipelines.data.listing import Listing, canonical_paths, in_order_of_id, number_classes, require_file
from pipelines.places import Found, Place

_VAL_NAME = "ILSVRC2012_val_"
_TRUTHS = ("LOC_val_solution.csv", "ILSVRC2012_validation_ground_truth.txt")
_TRUTH_FOLDERS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "data")
_DEVKIT_CLASSES = 1000
_SEPARATORS = {b";": "semicolons", b"\t": "tabs"}  # that spreadsheets write in place of commas
_HEADER_BYTES = 4096  # more than a header has
_LOOKED_AT = 4096  # files of one task: an object each for all of them would be more than their table


def find_csv(place: Place, split: str) -> tuple[Found, ...]:
    """Return <root>/<split>.csv, then the classes.txt next to it, if any."""
    files = {file.name: file for file in place.list_files()}
    return tuple(files[name] for name in (f"{split}.csv", NAMES) if name in files and f"{split}.csv" in files)


def list_csv(place: Place, split: str, files: tuple[Found, ...]) -> Listing:
    """Return the images that a CSV lists in the columns `path` (relative to the root) and `label` (a class's name).

    Or, for images that may show several classes, `labels`: their names with | between them, none for an image of no
    class. The classes are then those that classes.txt names, if there is one, as a split may lack a rare class.
    Without either column, the images have no labels.
    """
    name, table = place.name_of(files[0].name), _read_csv(place, files[0].name)
    _refuse_rows(table["path"].chunk(0), name, place)
    classes: tuple[str, ...] = ()
    labels, lists = np.zeros(len(table), dtype=np.int32), None
    if {"label", COLUMN} <= set(table.column_names):
        raise Refused(
            f"{name} has the columns label and {COLUMN}; keep {COLUMN} where an image may show several classes"
        )
    if COLUMN in table.column_names:
        classes, lists = number_lists(split_names(table[COLUMN].chunk(0)), read_names(place, files), name)
    elif "label" in table.column_names:
        given = pc.utf8_trim_whitespace(table["label"].chunk(0))
        if (row := pc.index(given, pa.scalar("", given.type)).as_py()) >= 0:
            raise Refused(f"{name}: {_row(row)} has no label; give the image its class, or remove the row")
        classes, labels = number_classes(given, name)
    elif others := [repr(other) for other in table.column_names if other != "path"]:
        warn_once(
            f"{name} has the columns {', '.join(others)} beside 'path' and neither 'label' nor '{COLUMN}': its images "
            "have no labels; rename the column that holds them"
        )
    locations = table["path"].chunk(0)
    names = pc.replace_substring_regex(locations, ".*/", "")
    return _listing(place, split, classes, labels, names, locations, lists, table=name)


def _read_csv(place: Place, file_name: str) -> pa.Table:
    """Return the rows of a CSV with the column path; Refused if it is not one, or has a column twice."""
    name = place.name_of(file_name)
    types = {"path": pa.large_string(), "label": pa.large_string(), COLUMN: pa.string()}
    try:
        with place.open(file_name) as file:
            _refuse_separators(file.read(_HEADER_BYTES), name)
            file.seek(0)
            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=types))
        columns = table.column_names
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise Refused(
            f"{name} cannot be read as a CSV ({error}); give one in UTF-8 with columns path and label"
        ) from error
    if "path" not in columns:
        named = ", ".join(map(repr, columns[:8]))
        raise Refused(
            f"{name} has no column 'path'; its first line is a header, which names {named}: let it name path and "
            "label, in small letters"
        )
    if not len(table):
        raise Refused(f"{name} has no rows; it needs one for each image, in the columns path and label")
    if (twice := next((column for column in types if columns.count(column) > 1), None)) is not None:
        raise Refused(f"{name} has the column {twice!r} twice; keep one of them")
    return table.combine_chunks()


def _refuse_separators(start: bytes, name: str) -> None:
    """Refuse a CSV whose first line has no commas, but what some spreadsheets write in their place."""
    header = start.partition(b"\n")[0]
    found = next((words for mark, words in _SEPARATORS.items() if mark in header and b"," not in header), None)
    if found is not None:
        raise Refused(f"{name} is separated by {found}; save it with commas")


def _refuse_rows(paths: pa.Array, name: str, place: Place) -> None:
    """Refuse rows of a CSV without a path, or with one that an earlier row has."""
    if (row := pc.index(pc.utf8_trim_whitespace(paths), pa.scalar("", paths.type)).as_py()) >= 0:
        raise Refused(f"{name}: {_row(row)} has no path; give one relative to {place.root}, or remove the row")
    files = pc.replace_substring_regex(pc.replace_substring_regex(paths, r"/(\./|/)+", "/"), r"^(\./)+", "")
    distinct = files.dictionary_encode()
    if len(distinct.dictionary) < len(paths):
        indices = distinct.indices.to_numpy()
        first = np.unique(indices, return_index=True)[1]
        again = int(np.setdiff1d(np.arange(len(paths)), first)[0])
        raise Refused(
            f"{name}: {_row(again)} names {files[again]}, as row {first[indices[again]] + 1:,} does; remove one of "
            f"them, or give the classes of an image that shows several in one row, in a column {COLUMN!r}"
        )


def _row(row: int) -> str:
    return f"row {row + 1:,} below the header"


def find_flat_imagenet(place: Place, split: str) -> tuple[Found, ...]:
    """Return the published labels of ImageNet's validation images, where those lie in one flat folder."""
    if not place.is_local or next((Path(place.root) / split).glob(f"{_VAL_NAME}*.JPEG"), None) is None:
        return ()
    for parent in (Path(place.root), *Path(place.root).parents[:3]):
        for folder in _TRUTH_FOLDERS:
            for truth in _TRUTHS:
                path = parent / folder / truth
                if path.is_file():
                    status = path.stat()
                    return (Found(str(path), status.st_size, status.st_mtime_ns),)
    raise Refused(
        f"{Path(place.root) / split} holds ImageNet's validation images without class folders, and no labels; "
        f"put {' or '.join(_TRUTHS)} (with the devkit's meta.mat) into {place.root}"
    )


def list_flat_imagenet(place: Place, split: str, files: tuple[Found, ...]) -> Listing:
    """Return ImageNet's validation images with the class of each; Refused where the labels are not of these images."""
    truth = Path(files[0].name)
    images = [file.name for file in place.list_files(split)]
    wnids = _kaggle_classes(truth) if truth.suffix == ".csv" else _devkit_classes(truth)
    names = [PurePosixPath(image).name for image in images]
    unknown = next((name for name in names if PurePosixPath(name).stem not in wnids), None)
    if unknown is not None:
        raise Refused(f"{truth} has no label for {unknown}; give the labels of these images, or remove it")
    given = pa.array([wnids[PurePosixPath(name).stem] for name in names], type=pa.large_string())
    classes, labels = number_classes(given, place.root)
    listing = _listing(place, split, classes, labels, pa.array(names), pa.array(images, type=pa.large_string()))
    return replace(listing, folders={split: (Path(place.root) / split).stat().st_mtime_ns})


def _kaggle_classes(path: Path) -> dict[str, str]:
    """Return {name of an image: its class} of Kaggle's LOC_val_solution.csv."""
    lines = (line.split(",") for line in path.read_text().splitlines()[1:])
    return {line[0]: line[1].split()[0] for line in lines if len(line) == 2 and line[1].strip()}


def _devkit_classes(path: Path) -> dict[str, str]:
    """Return {name of an image: its class} of the development kit: a line per image, with its class's number there.

    meta.mat next to it says which class a number means.
    """
    from scipy.io import loadmat

    meta = path.parent / "meta.mat"
    if not meta.is_file():
        raise Refused(f"{path} numbers the classes as the development kit's meta.mat says; put that file beside it")
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    wnids = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    numbers = [int(line) for line in path.read_text().split()]
    wrong = next((number for number in numbers if not 1 <= number <= _DEVKIT_CLASSES or number not in wnids), None)
    if wrong is not None:
        raise Refused(f"{path} has class {wrong}, which {meta} does not name; fetch the development kit again")
    return {f"{_VAL_NAME}{row:08d}": wnids[number] for row, number in enumerate(numbers, 1)}


def _listing(
    place: Place,
    split: str,
    classes: Sequence[str],
    labels: NDArray[np.int32],
    names: pa.Array,
    locations: pa.Array,
    lists: pa.ListArray | None = None,
    table: str | None = None,
) -> Listing:
    """Return the listing of files anywhere below the root. Refused for one that is not there.

    lists: the class numbers of images that may have several; their labels are 0. table: the name of the file that names
    them, row by row, for an error.
    """
    if not place.is_local:
        raise Refused(f"{place.root}: single images in an object store are not read; pack them: ops data pack")
    with ThreadPoolExecutor() as threads:
        starts = range(0, len(locations), _LOOKED_AT)
        parts = list(threads.map(lambda start: _sizes_and_times(place, locations, start, table), starts))
    sizes, written, changed = np.concatenate(parts).T
    columns = {
        "path": canonical_paths(split, () if lists is not None else classes, labels, names),
        "label": labels,
        "num_bytes": pa.array(sizes, type=pa.int64()),
        "mtime_ns": pa.array(written, type=pa.int64()),
        "ctime_ns": pa.array(changed, type=pa.int64()),
        "location": locations,
    }
    if lists is not None:
        columns[COLUMN] = lists
    return Listing(tuple(classes), in_order_of_id(pa.table(columns)))


def _sizes_and_times(place: Place, locations: pa.Array, start: int, table: str | None) -> NDArray[np.int64]:
    """Return (size, times of modification and of change) of some files [n,3], from `start` on.

    table: see `_listing`.
    """
    paths = locations.slice(start, _LOOKED_AT).to_pylist()
    found = np.empty((len(paths), 3), dtype=np.int64)
    for number, path in enumerate(paths):
        full = Path(place.root) / path
        with refusing_broken(str(full)):
            try:
                status = full.stat()
            except OSError as error:
                if table is None:
                    raise
                raise _wrong(full, f"cannot be read ({error.strerror})", table, start + number, place) from error
        if table is not None and stat.S_ISDIR(status.st_mode):
            raise _wrong(full, "is a folder, not an image", table, start + number, place)
        require_file(str(full), status)
        found[number] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def _wrong(path: Path, what: str, table: str, row: int, place: Place) -> Refused:
    """Return the refusal of a path in a row of a table."""
    slashes = ", with / in place of \\" if "\\" in str(path) else ""
    return Refused(
        f"{table}: {path}, of {_row(row)}, {what}; correct the path{slashes}, which is relative to {place.root}"
    )

"""CIFAR-100, from its published files to an image folder of PNG files, which every loader and every recipe reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torchvision.datasets import CIFAR100

from kdcore.errors import Refused
from ops.console import console, say

SPLITS = {"train": "train", "val": "test"}  # name in the image folder: in the published files' names
IMAGES = {"train": 50_000, "val": 10_000}

Row = tuple[bytes | NDArray[np.uint8], int]  # an image file or its pixels [32,32,3], and the class number


def unpack(source: str, target: str) -> int:
    """Write CIFAR-100 as an image folder, and print the number of images."""
    root = write_cifar100(Path(source), Path(target))
    say(f"{root}: {IMAGES['train']:,} training and {IMAGES['val']:,} validation images of 100 classes")
    return 0


def write_cifar100(source: Path, root: Path, images: Mapping[str, int] = IMAGES) -> Path:
    """Write root/{train,val}/<class number>/<row>.png, lossless, once; return root.

    source: the folder of the Parquet files, or of `cifar-100-python`, the authors' pickles. images: the number that
    each split must have. Class numbers are those of the files, in two digits, so that the order of names is the order
    of numbers, which published weights rely on. Refused for files that are missing, or are another data set.
    """
    if (root / "complete").exists():
        return root
    read = _official if (source / CIFAR100.base_folder).is_dir() else _parquet
    for split, rows in read(source, images).items():
        _write_split(rows, root / split, images[split])
    (root / "complete").touch()
    return root


def _official(source: Path, images: Mapping[str, int]) -> dict[str, Iterable[Row]]:
    """Return the rows of the authors' pickles.

    torchvision opens them only if their checksums are the published ones: a pickle can run any code.
    """
    try:
        found = {split: CIFAR100(source, train=split == "train") for split in SPLITS}
    except RuntimeError as error:
        raise Refused(
            f"{source / CIFAR100.base_folder} does not hold the published files (their MD5 checksums differ), and no "
            "other pickle is opened; fetch them again, or give the folder of the Parquet files"
        ) from error
    return {split: zip(data.data, data.targets, strict=True) for split, data in found.items()}


def _parquet(source: Path, images: Mapping[str, int]) -> dict[str, Iterable[Row]]:
    files = {split: sorted(source.glob(f"{published}-*.parquet")) for split, published in SPLITS.items()}
    for split, published in SPLITS.items():
        found = sum(map(_num_rows, files[split]))
        if found != images[split]:
            raise Refused(
                f"{source} has {found:,} rows in {len(files[split])} files {published}-*.parquet, but CIFAR-100 "
                f"has {images[split]:,}; give the folder that holds all of its Parquet files"
            )
    return {split: _rows(some) for split, some in files.items()}


def _write_split(rows: Iterable[Row], folder: Path, total: int) -> None:
    for label in range(100):
        (folder / f"{label:02d}").mkdir(parents=True, exist_ok=True)

    def write(numbered: tuple[int, Row]) -> None:
        number, (content, label) = numbered
        with Image.open(BytesIO(content)) if isinstance(content, bytes) else Image.fromarray(content) as image:
            image.convert("RGB").save(folder / f"{label:02d}" / f"{number:05d}.png", compress_level=1)

    with ThreadPoolExecutor() as threads:
        written = threads.map(write, enumerate(rows))
        for _ in track(written, f"writing {folder}", total, console=console, disable=not console.is_terminal):
            pass


def _num_rows(file: Path) -> int:
    try:
        content = pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise Refused(f"{file} is not a Parquet file ({error}); fetch it again") from error
    missing = {"img", "fine_label"} - set(content.schema_arrow.names)
    if missing:
        raise Refused(f"{file} has no column {min(missing)!r}, so it is not CIFAR-100's; give the folder of its files")
    return content.metadata.num_rows


def _rows(files: list[Path]) -> Iterator[Row]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["img", "fine_label"]):
            yield from ((row["img"]["bytes"], row["fine_label"]) for row in batch.to_pylist())

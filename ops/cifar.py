"""CIFAR-100's published Parquet files as an image folder of PNG files, which both loaders and every recipe read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import track

from ops.console import console, say

SPLITS = {"train": "train", "val": "test"}  # of the image folder, and in the files' names
IMAGES = {"train": 50_000, "val": 10_000}


def unpack(source: str, target: str) -> int:
    """The `data` command."""
    root = write_cifar100(Path(source), Path(target))
    say(f"{root}: {IMAGES['train']:,} training and {IMAGES['val']:,} validation images of 100 classes")
    return 0


def write_cifar100(parquet_dir: Path, root: Path, images: Mapping[str, int] = IMAGES) -> Path:
    """root/{train,val}/<class number>/<row>.png, lossless; once. images: how many each split must have.

    Class numbers are those of the files, in two digits, so that classes in order of name are classes in order of
    number, which published weights rely on. ValueError for files that are missing, or are another data set.
    """
    if (root / "complete").exists():
        return root
    files = {split: sorted(parquet_dir.glob(f"{published}-*.parquet")) for split, published in SPLITS.items()}
    for split, published in SPLITS.items():
        found = sum(map(_num_rows, files[split]))
        if found != images[split]:
            raise ValueError(
                f"{parquet_dir} has {found:,} rows in {len(files[split])} files {published}-*.parquet, but CIFAR-100 "
                f"has {images[split]:,}; give the folder that holds all of its Parquet files"
            )
    for split in SPLITS:
        _write_split(files[split], root / split, images[split])
    (root / "complete").touch()
    return root


def _write_split(files: list[Path], folder: Path, total: int) -> None:
    for label in range(100):
        (folder / f"{label:02d}").mkdir(parents=True, exist_ok=True)

    def write(numbered: tuple[int, dict[str, Any]]) -> None:
        number, row = numbered
        path = folder / f"{row['fine_label']:02d}" / f"{number:05d}.png"
        with Image.open(BytesIO(row["img"]["bytes"])) as image:
            image.convert("RGB").save(path, compress_level=1)

    with ThreadPoolExecutor() as threads:
        written = threads.map(write, enumerate(_rows(files)))
        for _ in track(written, f"writing {folder}", total, console=console, disable=not console.is_terminal):
            pass


def _num_rows(file: Path) -> int:
    try:
        content = pq.ParquetFile(file)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is no Parquet file ({error}); fetch it again") from error
    missing = {"img", "fine_label"} - set(content.schema_arrow.names)
    if missing:
        raise ValueError(
            f"{file} has no column {min(missing)!r}, so it is not CIFAR-100's; give the folder of its files"
        )
    return content.metadata.num_rows


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["img", "fine_label"]):
            yield from batch.to_pylist()

"""Images of one path, such as shards of a WebDataset that are each numbered from 0: one identity in every container."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data.convert import PackJob, run_pack_job
from pipelines.data.index import build_index
from pipelines.data.source import Source
from tests.pipelines.containers import add

Images = list[tuple[str, bytes, int]]  # (name, content, class)


def images() -> Images:
    """Twelve images of one size in bytes, of four names, one of them there twice."""
    made: Images = []
    for number in range(11):
        file = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "BMP")
        made.append((f"{number % 4:04d}", file.getvalue(), number % 2))
    return [*made, made[7]]


def write_tars(images: Images, root: Path, per_tar: int) -> None:
    (root / "train").mkdir(parents=True)
    for start in range(0, len(images), per_tar):
        with tarfile.open(root / "train" / f"{start}.tar", "w") as tar:
            for name, content, label in images[start : start + per_tar]:
                add(tar, f"{name}.bmp", content)
                add(tar, f"{name}.cls", f"class{label}".encode())


def write_tar_with_names(images: Images, root: Path) -> None:
    root.mkdir()
    with tarfile.open(root / "train.tar", "w") as tar:
        for number, (name, content, label) in enumerate(images):
            add(tar, f"{number}.bmp", content)
            add(tar, f"{number}.json", f'{{"label": "class{label}", "filename": "{name}.bmp"}}'.encode())


def write_parquet(images: Images, root: Path) -> None:
    root.mkdir()
    rows = [{"bytes": content, "path": f"{name}.bmp"} for name, content, _ in images]
    pq.write_table(pa.table({"image": rows, "label": [f"class{one[2]}" for one in images]}), root / "train.parquet")


def write_csv(images: Images, root: Path) -> None:
    lines = ["path,label"]
    for number, (name, content, label) in enumerate(images):
        (root / str(number)).mkdir(parents=True)
        (root / str(number) / f"{name}.bmp").write_bytes(content)
        lines.append(f"{number}/{name}.bmp,class{label}")
    (root / "train.csv").write_text("\n".join(lines))


WRITERS: dict[str, Callable[[Images, Path], None]] = {
    "tars": lambda images, root: write_tars(images, root, 4),
    "other tars": lambda images, root: write_tars(images, root, 2),
    "tar with names": write_tar_with_names,
    "parquet": write_parquet,
    "csv": write_csv,
}


def built(root: Path) -> Source:
    return build_index(root, "train", root.with_name("index"), progress=False)


@pytest.mark.parametrize("kind", WRITERS)
def test_images_of_one_path(kind: str, tmp_path: Path) -> None:
    """Have ids that neither the container nor the order in it nor the shards say, and a pack keeps them."""
    write_tars(images(), tmp_path / "first", 4)
    first = built(tmp_path / "first")
    everyone = np.arange(len(first))
    WRITERS[kind](images()[::-1], tmp_path / "second")
    second = built(tmp_path / "second")
    packed = run_pack_job(
        job := PackJob(str(tmp_path / "second"), "train", str(tmp_path / "pack"), str(tmp_path / "index")),
        job.prepare(),
    )
    assert len({source.fingerprint for source in (first, second, packed)}) == 1
    assert first.read(everyone) == second.read(everyone) == packed.read(everyone)


def test_one_image_with_two_lists_of_labels(tmp_path: Path) -> None:
    name, content, _ = images()[0]
    found = set()
    for order in (1, -1):
        (root := tmp_path / str(order)).mkdir()
        for folder in "ab":
            (root / folder).mkdir()
            (root / folder / f"{name}.bmp").write_bytes(content)
        rows = [f"a/{name}.bmp,cat", f"b/{name}.bmp,cat|dog"]
        (root / "train.csv").write_text("\n".join(["path,labels", *rows[::order]]))
        found.add(built(root).fingerprint)
    assert len(found) == 1

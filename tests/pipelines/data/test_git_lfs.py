"""Git LFS pointers in the place of images, whatever holds them."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from kdcore.errors import Refused
from pipelines.data.index import build_index
from tests.pipelines.containers import add

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"


@pytest.mark.parametrize(
    "name",
    [
        "train/cat/0.jpg",
        "train.tar",
        "train.tar.gz",
        "train.tar.xz",
        "train.parquet",
        "data/train-00000-of-00001.parquet",
        "train.csv",
        "train/index.arrow",
    ],
)
def test_a_pointer_is_called_one(name: str, tmp_path: Path) -> None:
    file = tmp_path / "images" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(POINTER)
    with pytest.raises(Refused, match=rf"{name} is a Git LFS pointer.* `git lfs pull`"):
        build_index(tmp_path / "images", "train", tmp_path / "index", progress=False)


def test_a_pointer_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        add(tar, "cat/0.jpg", POINTER)
    with pytest.raises(Refused, match=r"train.tar: \S*cat/0.jpg is a Git LFS pointer"):
        build_index(tmp_path, "train", tmp_path / "index", progress=False)

"""Which files hold a split, and classes that are given as numbers or by name."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kdcore.errors import Refused
from pipelines.data.folder import list_folder
from pipelines.data.labels import number_lists
from pipelines.data.listing import find_containers, name_numbers, number_classes
from pipelines.places import Place


def test_numbers_that_are_ids_make_no_classes() -> None:
    with pytest.raises(Refused, match=r"images of 2 classes whose numbers go up to 1,440,764: ids rather than numbers"):
        name_numbers(np.array([2084, 1_440_764]), None, "images")
    assert len(name_numbers(np.array([3, 999]), None, "images")) == 1000, "a small part of ImageNet"
    assert len(name_numbers(np.arange(0, 21_000, 2) + 1, None, "images")) == 21_000


def held(root: Path, split: str, names: list[str], suffixes: tuple[str, ...] = (".tar",)) -> list[str]:
    """Return the files with these names that hold a split."""
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"x")
    return [file.name for file in find_containers(Place.of(root, "data.root"), split, suffixes)]


@pytest.mark.parametrize(
    ("split", "found"),
    [("train", "train-0.tar"), ("val", "validation-0.tar"), ("train_val", "train_val-0.tar"), ("test", None)],
)
def test_a_file_of_two_splits_is_of_neither(
    split: str, found: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their images would be in both; what is left out is said."""
    names = ["train-0.tar", "train_val-0.tar", "train_val-1.tar", "train-noisy-0.tar", "validation-0.tar"]
    assert held(tmp_path, split, names) == [name for name in names if found and name[:-5] == found[:-5]]
    assert ("train_val-0.tar is not read as part of the split" in caplog.text) == (split in ("train", "val"))
    assert ("train-noisy-0.tar is not read as part of the split 'train', for its" in caplog.text) == (split == "train")


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["train-val-0.tar"], r"train-val-0.tar names two splits, 'train' and 'val'; .* move all files .*/train, else"),
        (["a-x-train-0.tar", "a-z-train-0.tar"], None),  # one-letter words may count shards
        (["clean-train-0.tar", "noisy-train-0.tar"], r"clean-train-0.tar and noisy-train-0.tar differ in more than a"),
        (["data/train_x1-0.tar", "data/trainer.tar"], None),
        (["train.tar.gz", "train-1.tgz"], None),
        (["data/train-00000-of-00002-b42a775f407cee45.tar", "data/train-00001-of-00002-1f0a775f407cee4c.tar"], None),
        (["in_train_part1.tar", "in_train_part2.tar", "in_val.tar"], None),
    ],
)
def test_files_of_one_split_are_called_alike(names: list[str], complaint: str | None, tmp_path: Path) -> None:
    """But for the numbers of shards, in whatever way these are written."""
    suffixes = (".tar", ".tar.gz", ".tgz")
    if complaint is None:
        expected = sorted(name for name in names if name not in ("data/trainer.tar", "in_val.tar"))
        assert held(tmp_path, "train", names, suffixes) == expected
    else:
        with pytest.raises(Refused, match=complaint):
            held(tmp_path, "train", names, suffixes)


@pytest.mark.parametrize(("name", "twin"), [("cat", " cat"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_look_the_same_are_refused(name: str, twin: str, tmp_path: Path) -> None:
    first, second = sorted((name, twin))
    with pytest.raises(Refused, match=re.escape(f"images has the classes {first!a} and {second!a}: the same to the")):
        number_classes(pa.array([name, "dog", twin]), "images")
    with pytest.raises(Refused, match="the same to the eye"):
        number_lists(pa.array([[name], ["dog", twin]]), None, "images")
    for folder in (name, "dog", twin):
        (tmp_path / "train" / folder).mkdir(parents=True)
        (tmp_path / "train" / folder / "0.jpg").write_bytes(b"x")
    with pytest.raises(Refused, match=r"/train has the classes .* the same to the eye"):
        list_folder(Place.of(tmp_path, "data.root"), "train")

"""Parquet and CSVs: labels as numbers and as text, and tables that hold something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcore.errors import Refused
from pipelines.data.classes import check_same_classes
from tests.pipelines.data.test_kinds import build
from tests.pipelines.pictures import picture


def test_numbers_without_names_become_digits_of_one_width(tmp_path: Path) -> None:
    """As in CIFAR-100's Parquet, and in the image folder that is made of it: 9 comes before 10."""
    images = [{"bytes": _jpeg(tmp_path, seed), "path": None} for seed in range(3)]
    pq.write_table(pa.table({"img": images, "fine_label": [10, 9, 10]}), tmp_path / "test-0000.parquet")
    source = build(tmp_path, "test")
    assert source.classes == tuple(f"{label:02d}" for label in range(11))
    assert source.labels.tolist() == [9, 10, 10]
    assert source.table["path"].to_pylist() == ["test/09/1", "test/10/0", "test/10/2"]


def test_a_class_that_one_split_lacks_is_told_whatever_the_width_of_its_number(tmp_path: Path) -> None:
    images = [{"bytes": _jpeg(tmp_path, seed), "path": None} for seed in range(2)]
    for split, last in (("train", 10), ("test", 9), ("other", 12)):
        pq.write_table(pa.table({"img": images, "label": [0, last]}), tmp_path / f"{split}.parquet")
    train, test, other = (build(tmp_path, split) for split in ("train", "test", "other"))
    with pytest.raises(Refused, match="differ in 1 class; the first, '10', is in the training split only"):
        check_same_classes(train, test)
    with pytest.raises(Refused, match="differ in 3 classes; the first, '10', is in the validation split only"):
        check_same_classes(test, other)
    renamed = replace(train, classes=tuple(str(int(name)) for name in train.classes))
    with pytest.raises(Refused, match="in digits of different width, such as '00' and '0'; write them alike"):
        check_same_classes(train, renamed)


def test_parquet_of_paths_without_images(tmp_path: Path) -> None:
    """As `to_parquet` of datasets writes it of a folder of images."""
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": None, "path": f"/x/{number}.jpg"} for number in range(2)], kind)
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "train.parquet")
    with pytest.raises(Refused, match=r"train.parquet holds paths \(such as /x/0.jpg\) and no images; write it again"):
        build(tmp_path)


def test_a_text_that_names_no_class_is_told_by_its_row(tmp_path: Path) -> None:
    images = [{"bytes": _jpeg(tmp_path, seed), "path": None} for seed in range(2)]
    pq.write_table(pa.table({"image": images, "label": ["a", ""]}), tmp_path / "train.parquet")
    with pytest.raises(Refused, match="image 2 of 2 has a class without a name; give it one"):
        build(tmp_path)


def test_labels_that_are_text(tmp_path: Path) -> None:
    images = [{"bytes": _jpeg(tmp_path, seed), "path": f"{seed}.jpg"} for seed in range(2)]
    pq.write_table(pa.table({"image": images, "label": ["dog", "cat"]}), tmp_path / "train.parquet")
    source = build(tmp_path)
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"text": ["a"], "label": [0]}, r"has columns text, label, none of which hold images; give Parquet with one"),
        ({"image": [b"x"], "label": pa.array([None], pa.int64())}, r"column 'label' has 1 rows without a label"),
        ({"image": [b"x"], "label": [-1]}, r"has an image of class -1, but labels count from 0"),
        ({"image": [b"x"], "label": [0]}, r"train.parquet: train/0/0 cannot be read as an image"),
        (pa.Table.from_arrays([pa.array([b"x"]), *[pa.array([0])] * 2], ["image", "label", "label"]), r"'label' twice"),
    ],
)
def test_parquet_that_holds_something_else(table: dict | pa.Table, complaint: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    with pytest.raises(Refused, match=complaint):
        build(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(Refused, match=r"train.parquet is not a whole Parquet file"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "file,label\na.jpg,cat",
            r"train.csv has no column 'path'; its first line .* names 'file', 'label': let it name",
        ),
        ("a.jpg,cat\nb.jpg,dog", r"its first line is a header, which names 'a.jpg', 'cat': let it name path and label"),
        ("Path,Label\na.jpg,cat", r"which names 'Path', 'Label': let it name path and label, in small letters"),
        ("\ufeffpath;label\na.jpg;cat", r"train.csv is separated by semicolons; save it with commas$"),
        ("path;label\na,1.jpg;cat", r"train.csv is separated by semicolons; save it with commas$"),
        ("path\tlabel\na.jpg\tcat", r"train.csv is separated by tabs; save it with commas$"),
        ("path,label\ncats\\a.jpg,cat", r"correct the path, with / in place of \\, which is relative to /"),
        ("path,label\n", r"train.csv has no rows"),
        ("path,label\na.jpg,cat\nb", r"train.csv cannot be read as a CSV \(.*Expected 2 columns, got 1"),
        ("path,label\na.jpg,cat", r"train.csv: /.*/a.jpg, of row 1 below the header, cannot be read \(No such file"),
        ("path,label\na.jpg,cat\nb.jpg, ", r"train.csv: row 2 below the header has no label; give the image its class"),
    ],
)
def test_csvs_that_are_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(Refused, match=complaint):
        build(tmp_path)


def _jpeg(folder: Path, seed: int) -> bytes:
    picture(20, 20, seed).save(folder / "one.jpg")
    return (folder / "one.jpg").read_bytes()

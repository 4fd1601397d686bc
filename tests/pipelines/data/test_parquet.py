"""Parquet's labels of every kind, and row groups that are larger than a shard."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcore.errors import Refused
from pipelines.data.packing import build_pack
from pipelines.data.parquet import ParquetPacking, find_parquet
from pipelines.places import Place

NAMES = pa.array(["cat", "dog", "cat"])


def packing(root: Path, shard_bytes: int = 2**28) -> ParquetPacking:
    place = Place.of(root, "data.root")
    return ParquetPacking(place, "train", find_parquet(place, "train"), shard_bytes)


def write(root: Path, *labels: pa.Array, column: str = "label") -> None:
    for number, values in enumerate(labels):
        table = pa.table({"image": pa.array([b"x"] * len(values), pa.binary()), column: values})
        pq.write_table(table, root / f"train-{number}.parquet")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([NAMES.dictionary_encode()], (("cat", "dog"), [0, 1, 0])),
        ([NAMES.cast(pa.string_view()), NAMES.cast(pa.large_string())], (("cat", "dog"), [0, 1, 0, 0, 1, 0])),
        ([pa.array([0, 1], pa.int32()), pa.array([1, 2], pa.uint64())], (("0", "1", "2"), [0, 1, 1, 2])),
        ([pa.array([0, 1]), pa.array([], pa.null())], (("0", "1"), [0, 1])),
        ([pa.array([True, False])], (("0", "1"), [1, 0])),
        ([pa.array([0.0, 1.0])], (("0", "1"), [0, 1])),
        ([pa.array([], pa.null()), NAMES], (("cat", "dog"), [0, 1, 0])),
        ([pa.array([], pa.binary()), pa.array([0])], (("0",), [0])),
    ],
)
def test_labels_of_every_kind(labels: list[pa.Array], expected: tuple, tmp_path: Path) -> None:
    write(tmp_path, *labels)
    found = packing(tmp_path)
    assert (found.classes, found._labels(0)[0].tolist()) == expected


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([pa.array([0.0, 1.5])], r"train-0.parquet: column 'label' is of double, not class numbers or names \(.*1.5"),
        ([pa.array([2**64 - 1], pa.uint64())], r"train-0.parquet: column 'label' is of uint64, not class numbers"),
        ([pa.array([0]), NAMES], r"train-1.parquet: column 'label' is of large_string, and that of the first file int"),
        ([pa.array([{"a": 1}])], r"train-0.parquet: column 'label' is of struct<a: int64>, not class numbers or names"),
        ([pa.array([[0.5]])], r"train-0.parquet: column 'label' holds lists of double; give lists of class numbers"),
    ],
)
def test_labels_of_no_kind_are_refused_by_file(labels: list[pa.Array], complaint: str, tmp_path: Path) -> None:
    write(tmp_path, *labels)
    with pytest.raises(Refused, match=complaint):
        assert packing(tmp_path).classes


@pytest.mark.parametrize(
    "kinds",
    [
        (pa.list_(pa.int64()), pa.list_(pa.int32()), pa.large_list(pa.uint8()), pa.null()),
        (pa.null(), pa.list_(pa.string()), pa.large_list(pa.large_string())),
        (pa.list_(pa.int64(), 2), pa.list_(pa.int64())),
    ],
)
def test_lists_of_every_kind(kinds: tuple[pa.DataType, ...], tmp_path: Path) -> None:
    """A file of null has no rows."""
    lists = [[0, 1], [1, 2]] if "int" in str(kinds) else [["a", "b"], ["b", "c"]]
    write(tmp_path, *(pa.array([] if kind == pa.null() else lists, kind) for kind in kinds), column="labels")
    found = packing(tmp_path)
    assert (len(found.classes), found.multi_label) == (3, True)
    assert found._labels(0)[1].to_pylist() == [[0, 1], [1, 2]] * sum(kind != pa.null() for kind in kinds)


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_file_without_the_column_of_labels(lacking: int, tmp_path: Path) -> None:
    write(tmp_path, NAMES, NAMES)
    unlabelled = pa.table({"image": pa.array([b"x"], pa.binary())})
    pq.write_table(unlabelled, tmp_path / f"train-{lacking}.parquet")
    with pytest.raises(Refused, match=rf"train-{lacking}.parquet has no column 'label', which other files of the spl"):
        assert packing(tmp_path).classes
    pq.write_table(unlabelled[:0], tmp_path / f"train-{lacking}.parquet")
    assert packing(tmp_path).classes == ("cat", "dog"), "one without rows has no images without labels"


def named(root: Path, number: int, *names: str) -> None:
    table = pa.table({"image": pa.array([b"x"], pa.binary()), "label": [0]})
    about = {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})} if names else None
    pq.write_table(table.replace_schema_metadata(about), root / f"train-{number}.parquet")


def test_names_of_classes_that_differ(tmp_path: Path) -> None:
    named(tmp_path, 0)
    named(tmp_path, 1, "cat", "dog")
    assert packing(tmp_path).classes == ("cat", "dog"), "a file may leave them out"
    named(tmp_path, 2, "dog", "cat")
    with pytest.raises(Refused, match=r"train-2.parquet has 'dog' as class 0, and .*/train-1.parquet 'cat'; write the"):
        assert packing(tmp_path).classes
    named(tmp_path, 2, "cat")
    with pytest.raises(Refused, match=r"train-2.parquet has 1 classes, and .*/train-1.parquet 2; write the files"):
        assert packing(tmp_path).classes


def test_metadata_of_another_kind(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([b"x"], pa.binary()), "label": [0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": "a hub"}), tmp_path / "train.parquet")
    with pytest.raises(Refused, match=r"train.parquet has something other than features under 'huggingface' in its"):
        assert packing(tmp_path).classes


def test_a_column_of_images_of_another_name(tmp_path: Path) -> None:
    write(tmp_path, NAMES, NAMES)
    pq.write_table(pa.table({"img": pa.array([b"x"], pa.binary()), "label": ["cat"]}), tmp_path / "train-1.parquet")
    with pytest.raises(Refused, match=r"train-1.parquet has its images in the column 'img', and .*-0.parquet in 'imag"):
        assert packing(tmp_path).num_rows


@pytest.mark.parametrize("column", ["image", "label"])
def test_a_damaged_page_is_named(column: str, tmp_path: Path) -> None:
    """Whose file has a whole end."""
    write_groups(tmp_path, 50, 10)
    path = tmp_path / "train.parquet"
    group = pq.ParquetFile(path).metadata.row_group(2)
    page = group.column(0 if column != "label" else group.num_columns - 1)
    content = bytearray(path.read_bytes())
    content[page.data_page_offset : page.data_page_offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(
        Refused, match=r"train.parquet is not a whole Parquet file, or cannot be read \(.*\); fetch it aga"
    ):
        list(packing(tmp_path).samples(0))


def test_a_column_of_another_name_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, NAMES, column="species")
    with caplog.at_level(logging.INFO):
        assert packing(tmp_path).classes == ()
    assert "has the columns species beside its images and none of label, fine_label, labels" in caplog.text


def write_groups(root: Path, num: int, rows_a_group: int) -> list[bytes]:
    images = [np.random.default_rng(number).bytes(1000) for number in range(num)]
    rows = [{"bytes": image, "path": f"{number:03d}.png"} for number, image in enumerate(images)]
    table = pa.table({"image": rows, "label": [number % 3 for number in range(num)]})
    pq.write_table(table, root / "train.parquet", row_group_size=rows_a_group, use_dictionary=False)
    return images


def test_a_large_row_group_is_cut(tmp_path: Path) -> None:
    """Every row once, in order, under its own label and name; in shards of about the size that was asked for."""
    images = write_groups(tmp_path, 1000, 600)
    found = packing(tmp_path, 40_000)
    assert found.num_shards >= 24
    samples = [list(found.samples(number)) for number in range(found.num_shards)]
    assert max(sum(len(sample.content) for sample in shard) for shard in samples) <= 45_000
    flat = [sample for shard in samples for sample in shard]
    assert [sample.content for sample in flat] == images
    assert [sample.label for sample in flat] == [number % 3 for number in range(1000)]
    assert [sample.path for sample in flat[-2:]] == ["train/2/998.png", "train/0/999.png"]
    with pytest.raises(Refused, match=r"train.parquet: train/0/000.png cannot be read as an image"):
        build_pack(found, Place.of(tmp_path / "pack", "-o"), "train")


def test_small_row_groups_are_joined_as_before(tmp_path: Path) -> None:
    """The cut, and with it the key of a pack that is there."""
    write_groups(tmp_path, 100, 10)
    found = packing(tmp_path, 15_000)
    assert [shard.groups for shard in found._shards] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert not any(shard.is_part for shard in found._shards)
    assert len(packing(tmp_path, 8000)._shards) == 10, "one that is a little larger than a shard is one"

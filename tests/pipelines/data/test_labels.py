"""Images with several labels each, in every container that holds them: one order, one fingerprint, the same labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdcore.errors import Refused
from pipelines.data.index import build_index
from pipelines.data.labels import answers_of, multi_hot
from pipelines.data.packing import SourcePacking, build_pack
from pipelines.data.source import Source
from pipelines.data.variants import own_target
from pipelines.places import Place
from tests.multi_label import CLASSES, shown_in, write_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("several"), train=20, val=9)


@pytest.fixture(scope="module")
def source(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Source:
    return build_index(pictures, "train", tmp_path_factory.mktemp("index"))


def write_parquet(pictures: Path, out: Path, as_numbers: bool) -> None:
    """One file with a column of lists: of names, or of numbers whose names are in the hub's metadata."""
    rows = shown_in(pictures, "train")
    images = [{"bytes": (pictures / "pictures" / name).read_bytes(), "path": name} for name in rows]
    lists = [text.split("|") if text else [] for text in rows.values()]
    feature = {"feature": {"names": list(CLASSES), "_type": "ClassLabel"}, "_type": "Sequence"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}, "labels": feature}}})}
    if as_numbers:
        lists = [[CLASSES.index(name) for name in one] for one in lists]
    table = pa.table({"image": images, "labels": pa.array(lists)})
    out.mkdir()
    pq.write_table(table.replace_schema_metadata(metadata if as_numbers else None), out / "train.parquet", 7)


def test_a_csv_of_several_labels(source: Source, pictures: Path) -> None:
    assert (source.classes, source.multi_label, source.labelled) == (CLASSES, True, True)
    shown = shown_in(pictures, "train")
    expected = [[name in shown[f"train-{number:03d}.png"].split("|") for name in CLASSES] for number in range(20)]
    ids = np.arange(20)[::-1]
    assert np.array_equal(source.targets(ids), np.array(expected, dtype=np.float32)[::-1])
    assert source.targets(ids).dtype == np.float32
    assert source.class_counts.tolist() == np.sum(expected, axis=0).tolist()
    assert [] in source.label_lists.to_pylist(), "one of them shows nothing"
    answers = own_target(source).answers
    assert [[CLASSES[n] for n in row if n >= 0] for row in answers] == [
        [name for name, there in zip(CLASSES, row, strict=True) if there] for row in expected
    ]


@pytest.mark.parametrize("kind", ["names", "numbers", "pack"])
def test_other_containers_hold_the_same(kind: str, source: Source, pictures: Path, tmp_path: Path) -> None:
    if kind == "pack":
        build_pack(SourcePacking(source, shard_bytes=4000), Place.of(tmp_path / "images", "-o"), "train")
        assert len(list((tmp_path / "images" / "train").glob("*.facts.arrow"))) > 1
    else:
        write_parquet(pictures, tmp_path / "images", kind == "numbers")
    other = build_index(tmp_path / "images", "train", tmp_path / "index")
    assert other.multi_label
    assert other.fingerprint == source.fingerprint
    assert other.label_lists.equals(source.label_lists)


def test_labels_are_part_of_the_fingerprint(source: Source, pictures: Path, tmp_path: Path) -> None:
    changed = tmp_path / "images"
    changed.mkdir()
    (changed / "pictures").symlink_to(pictures / "pictures")
    first, *rest = (pictures / "train.csv").read_text().splitlines()
    last = next(row for row in rest if row.endswith(",red"))
    rest[rest.index(last)] = f"{last}|blue"
    (changed / "train.csv").write_text("\n".join([first, *rest]))
    other = build_index(changed, "train", tmp_path / "index")
    assert other.table["path"].equals(source.table["path"])
    assert other.fingerprint != source.fingerprint


def test_parts_of_a_source_keep_their_labels(source: Source) -> None:
    rest, held = source.split(0.25, seed=1)
    assert (len(rest), len(held)) == (15, 5)
    assert (rest.class_counts + held.class_counts).tolist() == source.class_counts.tolist()
    names = dict(zip(source.table["path"].to_pylist(), source.label_lists, strict=True))
    for part in (rest, held):
        assert part.multi_label
        for path, row in zip(part.table["path"].to_pylist(), part.label_lists, strict=True):
            assert row == names[path]
    with pytest.raises(Refused, match=r"several labels each, and data\.images_per_class needs one"):
        source.sample(2, seed=0)
    with pytest.raises(Refused, match=r"data\.held_out=0\.001 keeps back none of the images in .* \(there are 20\)"):
        source.split(0.001, seed=0)


def test_a_list_of_all_classes(pictures: Path, tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "pictures").symlink_to(pictures / "pictures")
    (root / "val.csv").write_text("path,labels\npictures/val-000.png, red | red \npictures/val-001.png,\n")
    (root / "classes.txt").write_text("blue\ngreen\nred\n")
    source = build_index(root, "val", tmp_path / "index")
    assert source.classes == CLASSES
    assert source.targets(np.arange(2)).tolist() == [[0, 0, 1], [0, 0, 0]], "spaces and repetitions mean nothing"
    (root / "classes.txt").write_text("blue\nred\nzebra\n")
    assert build_index(root, "val", tmp_path / "index").classes == ("blue", "red", "zebra")
    (root / "classes.txt").write_text("blue\n")
    with pytest.raises(
        Refused, match=r"val\.csv has an image of class 'red', which classes\.txt does not name; add it"
    ):
        build_index(root, "val", tmp_path / "index")


def test_what_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").symlink_to(pictures / "pictures")
    (tmp_path / "val.csv").write_text("path,labels\npictures/val-000.png,\n")
    with pytest.raises(Refused, match=r"val\.csv has no label at all; give each image the classes that it shows"):
        build_index(tmp_path, "val", tmp_path / "index")
    (tmp_path / "val.csv").write_text("path,label,labels\npictures/val-000.png,red,red\n")
    with pytest.raises(
        Refused, match="has the columns label and labels; keep labels where an image may show several classes"
    ):
        build_index(tmp_path, "val", tmp_path / "index")


def test_rows_of_lists() -> None:
    lists = pa.array([[2], [], [0, 1, 2], [1]], type=pa.list_(pa.int32()))
    assert multi_hot(lists, np.array([2, 0, 1]), 3).tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert multi_hot(lists.slice(1), np.array([0, 2]), 3).tolist() == [[0, 0, 0], [0, 1, 0]]
    assert multi_hot(lists, np.array([], dtype=np.int64), 3).shape == (0, 3)
    assert answers_of(lists).tolist() == [[2, -1, -1], [-1, -1, -1], [0, 1, 2], [1, -1, -1]]
    assert answers_of(lists[:0]).shape == (0, 1)

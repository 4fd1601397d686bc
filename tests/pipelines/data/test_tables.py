"""Tables that name images: what is said of a wrong path, and the memory of a long one."""

from __future__ import annotations

import logging
import os
import tracemalloc
from pathlib import Path

import pytest

from kdcore.errors import Refused
from pipelines.data.folder import list_folder
from pipelines.data.listing import Listing
from pipelines.data.tables import find_csv, list_csv
from pipelines.places import Place


def listed(root: Path) -> Listing:
    place = Place.of(root, "data.root")
    return list_csv(place, "train", find_csv(place, "train"))


def test_a_wrong_path_is_said_by_its_row(tmp_path: Path) -> None:
    """And where it is taken from; nothing of nodes, of which there are none yet."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "train.csv").write_text("path,label\na.jpg,cat\nfiles/b.jpg,dog\n")
    with pytest.raises(Refused, match=r"train.csv: .*/files/b.jpg, of row 2 below .* relative to /") as refused:
        listed(tmp_path)
    assert "node" not in str(refused.value)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (
            ["a.jpg,cat", ",dog"],
            r"train.csv: row 2 below the header has no path; give one relative to /.*, or remove the",
        ),
        (["a.jpg,cat", " ,dog"], r"train.csv: row 2 below the header has no path"),
        (
            ["a.jpg,cat", "b,dog"],
            r"/b, of row 2 below the header, is a folder, not an image; correct the path, which is",
        ),
        (
            ["a.jpg,cat", "c.jpg,dog", "a.jpg,dog"],
            r"train.csv: row 3 below the header names a.jpg, as row 1 does; remov",
        ),
        (["a.jpg,cat", "a.jpg,cat"], r"row 2 below the header names a.jpg, as row 1 does; .*, in a column 'labels'"),
        (["a.jpg,cat", "./a.jpg,cat"], r"row 2 below the header names a.jpg, as row 1 does; remove one"),
        (
            ["b/.//../a.jpg,cat", "b/../a.jpg,cat"],
            r"row 2 below the header names b/../a.jpg, as row 1 does; remove one",
        ),
    ],
)
def test_rows_that_are_wrong(rows: list[str], complaint: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / "train.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(Refused, match=complaint):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ("path,label,label", r"train.csv has the column 'label' twice; keep one of them"),
        ("path,labels,labels", r"train.csv has the column 'labels' twice; keep one of them"),
        ("path,path,label", r"train.csv has the column 'path' twice; keep one of them"),
        (
            "path,label,gr\xf6\xdfe",
            r"train.csv cannot be read as a CSV \(.* can't decode .*\); give one in UTF-8 with col",
        ),
    ],
)
def test_headers_that_are_wrong(header: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "train.csv").write_text(f"{header}\na.jpg,a.jpg,cat\n", "latin-1")
    with pytest.raises(Refused, match=complaint):
        listed(tmp_path)


@pytest.mark.parametrize("column", ["label", "labels"])
def test_spaces_around_a_class_are_not_of_its_name(column: str, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "train.csv").write_text(f"path,{column}\na.jpg,cat\nb.jpg, cat \nc.jpg,dog\n")
    listing = listed(tmp_path)
    assert listing.classes == ("cat", "dog")
    labels = listing.table[column].to_pylist()
    assert labels == ([0, 0, 1] if column == "label" else [[0], [0], [1]])


@pytest.mark.parametrize("column", ["class", " label"])
def test_a_column_of_another_name_is_said(column: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "train.csv").write_text(f"path,{column}\na.jpg, cat\n")
    with caplog.at_level(logging.INFO):
        assert listed(tmp_path).classes == ()
    assert f"train.csv has the columns '{column}' beside 'path' and neither 'label' nor 'labels': its" in caplog.text


def test_a_list_of_classes_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "train.csv").write_text("path,labels\na.jpg,cat\n")
    (tmp_path / "classes.txt").write_bytes(b"caf\xe9\ncat")
    with pytest.raises(Refused, match=r"classes.txt is not text in UTF-8 \(.*\); save it as UTF-8"):
        listed(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfbird\n\n cat \n")
    assert listed(tmp_path).classes == ("bird", "cat")


def test_a_link_to_nowhere_is_no_matter_of_nodes(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").symlink_to("/nowhere")
    with pytest.raises(Refused, match=r"a.jpg cannot be read as an image \(No such file or directory\); repair or rem"):
        list_folder(Place.of(tmp_path, "data.root"), "train")


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_files_of_one_name_in_several_folders(column: str, order: int, tmp_path: Path) -> None:
    """Are one behind the other by their sizes, in whatever order the rows are."""
    files = ["a/0.jpg", "b/0.jpg", "b/1.jpg", "0.jpg"]
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * (number + 1))
    (tmp_path / "train.csv").write_text(f"path,{column}\n" + "".join(f"{name},cat\n" for name in files[::order]))
    table = listed(tmp_path).table
    start = "train/cat/" if column == "label" else "train/"
    assert table["path"].to_pylist() == [f"{start}{name}.jpg" for name in (0, 0, 0, 1)]
    assert table["location"].to_pylist() == ["a/0.jpg", "b/0.jpg", "0.jpg", "b/1.jpg"]


def test_a_long_table_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.data.tables._LOOKED_AT", 512)
    num = 5_000
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "0").write_bytes(b"x")
    for number in range(1, num):
        os.link(tmp_path / "files" / "0", tmp_path / "files" / str(number))
    (tmp_path / "train.csv").write_text("path,label\n" + "".join(f"files/{number},cat\n" for number in range(num)))
    listed(tmp_path)  # what is imported on the way, and the names of files, which pathlib keeps
    tracemalloc.start()
    try:
        listing = listed(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(listing.table), set(listing.table["num_bytes"].to_pylist())) == (num, {1})
    assert peak < 200 * num, "bytes a row; a task a row took 1,900"

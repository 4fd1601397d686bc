"""Tables that name images: what is said of a wrong path, and the memory of a long one."""

from __future__ import annotations

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
    with pytest.raises(Refused, match=r"train.csv: .*/files/b.jpg, of row 2 below .* taken from /") as refused:
        listed(tmp_path)
    assert "node" not in str(refused.value)


def test_a_link_to_nowhere_is_no_matter_of_nodes(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "a.jpg").symlink_to("/nowhere")
    with pytest.raises(Refused, match=r"a.jpg cannot be read as an image \(No such file or directory\); repair or rem"):
        list_folder(Place.of(tmp_path, "data.root"), "train")


def test_a_long_table_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    num = 30_000
    (tmp_path / "train.csv").write_text("path,label\n" + "a.jpg,cat\n" * num)
    tracemalloc.start()
    try:
        listing = listed(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(listing.table), set(listing.table["num_bytes"].to_pylist())) == (num, {1})
    assert peak < 200 * num, "bytes a row; a task a row took 1,900"

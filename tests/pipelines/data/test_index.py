"""Indexing a folder: what it holds, that it is built once, and what changes it."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from kdcore.errors import Refused
from pipelines.data import describe
from pipelines.data import index as datasets
from pipelines.data.folder import list_folder
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.places import Place
from tests.pipelines.data.indexed import build
from tests.pipelines.pictures import picture


def test_what_it_holds(odd_index: Source) -> None:
    index = odd_index
    assert len(index) == 13
    assert index.classes == ("a", "b")
    assert index.labels.tolist() == [0] * 6 + [1] * 7
    files = sorted((Path(index.root) / "train").glob("*/*"))
    assert index.names(np.arange(13)) == [str(file) for file in files]
    assert index.names(np.array([12, 0])) == [str(files[12]), str(files[0])]
    sizes = {Path(file).name: (h, w) for file, h, w in zip(files, index.heights, index.widths, strict=True)}
    assert sizes["landscape.jpg"] == (60, 80)
    assert sizes["one_pixel_high.png"] == (1, 40)
    assert sizes["rotated_by_exif.jpg"] == (72, 54), "the stored size, not the one to view"
    assert index.table["crc32"].to_pylist() == [zlib.crc32(file.read_bytes()) for file in files]
    assert index.table["num_bytes"].to_pylist() == [file.stat().st_size for file in files]


def test_built_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(root)
    monkeypatch.setattr(describe, "inspect_stored", None)  # reading any file would now fail
    again = build(root)
    assert again.table.equals(first.table)
    assert again.fingerprint == first.fingerprint
    assert len(list((root.parent / "cache").glob("*.arrow"))) == 1


def test_opened_without_a_look_at_the_folder(root: Path) -> None:
    """What a run's workers do after their driver: the index as it was last found, even where the folder is gone."""
    built = build(root)
    root.rename(root.with_name("away"))
    opened = datasets.open_index(root, "train", root.parent / "cache")
    assert opened.table.equals(built.table)
    assert (opened.root, opened.classes, opened.fingerprint) == (built.root, built.classes, built.fingerprint)
    with pytest.raises(Refused, match=r"there is no index of .*val"):
        datasets.open_index(root, "val", root.parent / "cache")


def test_listing_holds_columns(root: Path) -> None:
    """What is known of the files before they are read: columns, in order of sample id."""
    listing = list_folder(Place.of(root, "data.root"), "train")
    classes, files = listing.classes, listing.table
    assert files.column_names == ["path", "label", "num_bytes", "mtime_ns", "ctime_ns"]
    assert files["path"].num_chunks == 1
    paths, labels = files["path"].to_pylist(), files["label"].to_pylist()
    assert paths == sorted(paths)
    assert [classes[label] for label in labels] == [Path(path).parts[1] for path in paths]
    for path, size, time in zip(paths, files["num_bytes"].to_pylist(), files["mtime_ns"].to_pylist(), strict=True):
        status = (root / path).stat()
        assert (size, time) == (status.st_size, status.st_mtime_ns)
    assert files["ctime_ns"].to_pylist() == [(root / path).stat().st_ctime_ns for path in paths]


def test_a_changed_file_changes_the_index_and_a_touched_one_does_not(root: Path) -> None:
    before = build(root)
    file = Path(before.names(np.array([0]))[0])
    os.utime(file, ns=(1, 1))
    assert build(root).fingerprint == before.fingerprint
    picture(30, 20, 5).save(file)
    after = build(root)
    assert after.fingerprint != before.fingerprint
    assert (after.heights[0], after.widths[0]) == (30, 20)


def test_fingerprint_does_not_depend_on_the_place(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(root, other)
    assert build(other).fingerprint == build(root).fingerprint
    (other / "train" / "0").rename(other / "train" / "9")
    assert build(other).fingerprint != build(root).fingerprint


def test_two_folders_whose_files_agree_in_name_size_and_time(tmp_path: Path) -> None:
    """As where images without compression are unpacked without their times: clean ones and noisy ones, for example."""
    for number, name in enumerate(("clean", "noisy")):
        (tmp_path / name / "train" / "a").mkdir(parents=True)
        file = tmp_path / name / "train" / "a" / "0.bmp"
        picture(9, 9, number).save(file)
        os.utime(file, (0, 0))
    sources = [build(tmp_path / name) for name in ("clean", "noisy")]
    assert sources[0].fingerprint != sources[1].fingerprint
    for source in sources:
        source.check(0, source.read(np.array([0]))[0])


def test_hidden_files_do_not_exist_and_folders_may_nest(root: Path) -> None:
    before = build(root).names(np.arange(6))
    (root / "train" / ".cache").mkdir()
    (root / "train" / "0" / ".DS_Store").write_bytes(b"x")
    (root / "train" / "2" / "more").mkdir()
    picture(9, 9, 1).save(root / "train" / "2" / "more" / "deep.png")
    index = build(root)
    assert index.names(np.arange(7)) == [*before, str(root / "train" / "2" / "more" / "deep.png")]
    assert index.labels[-1] == 2


def test_progress_can_be_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(root, "train", root.parent / "cache", progress=True)
    assert "Traceback" not in capsys.readouterr().err

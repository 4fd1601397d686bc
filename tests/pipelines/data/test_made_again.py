"""What is found damaged, gone or of an earlier version in the folder of indexes is made again by the next command."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from kdcore.errors import Refused
from pipelines.data import index
from pipelines.data.broken import USUAL, Acceptance
from pipelines.data.describe import describe
from pipelines.data.index import build_index, open_index
from pipelines.data.packing import SourcePacking, build_pack
from pipelines.data.source import Source
from pipelines.places import Place
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.pictures import write_plain_folder

NUM = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_plain_folder(tmp_path / "images", num=NUM)
    return tmp_path / "images"


def contained(container: str, folder: Path) -> Path:
    root = folder.parent / "out"
    root.mkdir()
    CONTAINERS[container](folder, "train", root)
    return root


def build(root: Path, acceptance: Acceptance = USUAL) -> Source:
    return build_index(root, "train", root.parent / "index", progress=False, acceptance=acceptance)


@pytest.mark.parametrize("num_bytes", [0, 200])
@pytest.mark.parametrize("container", ["folder", "parquet", "pack"])
def test_an_index_that_is_cut_off(container: str, num_bytes: int, folder: Path) -> None:
    root = contained(container, folder)
    whole = build(root)
    (path,) = (folder.parent / "index").glob("pack-*/train/index.arrow" if container == "parquet" else "index-*.arrow")
    path.unlink()
    path.write_bytes(b"ARROW1"[:num_bytes].ljust(num_bytes))
    with pytest.raises(Refused, match=r"\.arrow is missing or cut off; index .*out again"):
        open_index(root, "train", folder.parent / "index")
    assert build(root).fingerprint == whole.fingerprint


@pytest.mark.parametrize("container", ["compressed tars", "parquet"])
def test_a_file_beside_the_index_that_is_gone(container: str, folder: Path) -> None:
    root = contained(container, folder)
    whole = build(root)
    content = whole.read(np.arange(NUM))
    for path in (folder.parent / "index").rglob("*.tar" if container == "compressed tars" else "shard-00000.arrow"):
        path.unlink()
    with pytest.raises(Refused, match=r"cannot be read \(No such file or directory\); put it back, or start again"):
        open_index(root, "train", folder.parent / "index").read(np.arange(NUM))
    assert build(root).read(np.arange(NUM)) == content


def test_what_a_killed_decompression_left_is_removed(folder: Path) -> None:
    root = contained("compressed tars", folder)
    build(root)
    (tar,) = (folder.parent / "index").rglob("0000.tar")
    left = tar.with_name(f"{tar.name}.{'0' * 32}.tmp")
    tar.rename(left)
    build(root)
    assert tar.is_file()
    assert not left.exists()


@pytest.mark.parametrize("container", ["folder", "parquet"])
def test_what_a_killed_build_left_is_removed(container: str, folder: Path) -> None:
    """Of shards and of indexes; what is somebody's stays."""
    root, unfinished = contained(container, folder), "0" * 32 + ".tmp"
    build(root)
    index = folder.parent / "index"
    left = [index / f"index-{'a' * 32}.arrow.{unfinished}"]
    for pack in index.glob("pack-*/train"):
        left += [pack / f"{name}.{unfinished}" for name in ("shard-00000.arrow", "shard-00000.facts.arrow")]
    others = [path.with_name(f"thesis.{unfinished}") for path in left]
    for path in (*left, *others):
        path.touch()
    build_index(root, "train", index, progress=False, relist=True)
    assert [path for path in (*left, *others) if path.exists()] == others


def test_a_pack_that_a_changed_parquet_leaves_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And stays, since a run may read it."""
    root = contained("parquet", folder)
    first = build(root)
    for path in (root / "data").iterdir():
        os.utime(path, (1, 1))
    with caplog.at_level(logging.INFO):
        assert build(root).fingerprint == first.fingerprint
    assert f"{first.stored_in} holds the images of {root}/train as they were before; remove it once no" in caplog.text
    first.read(np.arange(NUM))


def test_an_arrow_file_of_something_else_is_no_pack(folder: Path, tmp_path: Path) -> None:
    """Nor is it removed where a pack is to be written."""
    path = tmp_path / "pack" / "train" / "index.arrow"
    path.parent.mkdir(parents=True)
    with pa.ipc.new_file(str(path), pa.schema({"text": pa.string()})):
        pass
    complaint = r"index.arrow is an Arrow file, but not a pack's index; move it elsewhere"
    with pytest.raises(Refused, match=complaint):
        build(tmp_path / "pack")
    with pytest.raises(Refused, match=complaint):
        build_pack(SourcePacking(build(folder)), Place.of(tmp_path / "pack", "place"), "train")
    assert path.is_file()


@pytest.mark.parametrize("container", ["folder", "parquet", "pack"])
def test_what_an_earlier_version_accepted_is_looked_at_again(
    container: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of pixels, in an index, in the pack that stands for Parquet, and in a pack: without reading its images."""
    Image.new("L", (8, 14_000)).save(folder / "train" / "0" / "line.png")
    with monkeypatch.context() as earlier:
        earlier.setattr("pipelines.data.images._SHORTER_SIDE", 1)
        earlier.setattr(index, "_VERSION", 2)
        root = contained(container, folder)
        assert len(build(root)) == NUM + 1
    with pytest.raises(Refused, match=r"has 14000x8 pixels: resized to a shorter side of 256"):
        build(root)


@pytest.mark.parametrize("container", ["folder", "csv", "webdataset", "parquet", "pack"])
def test_an_index_without_times_stays_good(container: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of version 5; it may lie where nothing can be written."""
    root = contained(container, folder)
    with monkeypatch.context() as earlier:
        earlier.setattr(index, "_VERSION", 5)
        earlier.setattr(index, "describe", lambda *given: _without_times(describe(*given)))
        before = build(root)
    monkeypatch.delattr(index, "_make")
    after = build(root)
    assert "mtime_ns" not in after.table.column_names
    assert after.fingerprint == before.fingerprint
    assert after.read(np.arange(NUM)) == before.read(np.arange(NUM))


def _without_times(table: pa.Table) -> pa.Table:
    return table.drop_columns([name for name in ("mtime_ns",) if name in table.column_names])


def test_a_pack_of_larger_images_than_are_allowed(folder: Path, tmp_path: Path) -> None:
    Image.new("1", (9_500, 9_500)).save(folder / "train" / "0" / "large.png")
    lax = Acceptance(max_pixels=10**9)
    build_pack(SourcePacking(build(folder, lax), acceptance=lax), Place.of(tmp_path / "pack", "place"), "train")
    assert len(build(tmp_path / "pack", lax)) == NUM + 1
    with pytest.raises(Refused, match=r"large.png has 9500x9500 pixels, more than data.max_pixels=89478485"):
        build(tmp_path / "pack")

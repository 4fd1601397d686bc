"""A node's copy of a store's images where its disk is full, fails, or holds what is others'."""

from __future__ import annotations

import errno
import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from kdcore.errors import Refused
from pipelines.data import copies
from pipelines.data.copies import CopyPolicy, Extent, LocalCopy, copy_of
from pipelines.data.remote import RemoteExtents, RemoteFiles
from pipelines.files import own_temporary_folder
from pipelines.places import Place


def extent(row: int, content: bytes) -> Extent:
    return Extent(row, 0, 100 * row, len(content), zlib.crc32(content))


def failing(error: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("how", ["raises", "writes a part"])
def test_a_disk_that_fills_up_is_said_once(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was kept before is read further; what is not, is fetched."""
    copy = LocalCopy(CopyPolicy(str(tmp_path)), "key", [1000], 10)
    copy.keep(extent(0, b"first"), b"first")
    with monkeypatch.context() as full, caplog.at_level(logging.WARNING):
        full.setattr(os, "pwrite", failing(errno.ENOSPC) if how == "raises" else lambda *_: 3)
        for row in range(1, 5):
            copy.keep(extent(row, b"other"), b"other")
    (record,) = caplog.records
    assert "cannot be written (No space left on device" in record.getMessage()
    assert record.getMessage().endswith("images are fetched from the store")
    assert [copy.read(extent(row, b"first")) for row in range(3)] == [b"first", None, None]


def test_a_copy_that_cannot_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = LocalCopy(CopyPolicy(str(tmp_path)), "key", [1000], 10)
    copy.keep(extent(0, b"first"), b"first")
    monkeypatch.setattr(os, "pread", failing(errno.EIO))
    assert copy.read(extent(0, b"first")) is None


def test_what_is_mapped_lies_on_the_disk(tmp_path: Path) -> None:
    """Also where an earlier version left a file that is sparse: writing to it on a full disk ends the process."""
    policy = CopyPolicy(str(tmp_path))
    folder = LocalCopy(policy, "key", [1000], 10**6).folder
    (folder / "present").write_bytes(b"")
    os.truncate(folder / "present", 10**6)
    copy = LocalCopy(policy, "key", [1000], 10**6)
    assert (copy.folder / "present").stat().st_blocks * 512 >= 10**6


def test_a_disk_that_is_full_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with caplog.at_level(logging.WARNING):
        assert copy_of(CopyPolicy(str(tmp_path)), "key", [1000], 10) is None
    assert "No space left on device" in caplog.text
    with pytest.raises(Refused, match=r"data.copies_dir: .* cannot be written \(No space left on device"):
        copy_of(CopyPolicy(str(tmp_path), window_bytes=10), "key", [1000], 10)


def test_a_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default each has one of their own; one that was named is refused by the setting."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert CopyPolicy().path == tmp_path / f"stillhouse-images-{os.getuid()}"
    (tmp_path / "stillhouse-images").mkdir()
    assert own_temporary_folder("stillhouse-images") == tmp_path / "stillhouse-images", "of an earlier version"
    monkeypatch.setattr(os, "open", failing(errno.EACCES))
    with pytest.raises(Refused, match=r"data.copies_dir: .* cannot be written \(Permission denied\); give a place"):
        copy_of(CopyPolicy(), "key", [1000], 10)


def test_only_copies_make_room(tmp_path: Path) -> None:
    """On a disk that holds other things: folders, links, files, and what no more than looks like a copy."""
    digest = "0123456789abcdef" * 2
    for name in ("thesis", "lost+found", digest, "scratch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text("of others")
    for name in ("in-use", "present", "size"):
        (tmp_path / "scratch" / name).write_bytes(bytes(16))
    (tmp_path / digest[::-1]).symlink_to(tmp_path / "scratch")
    (tmp_path / "thesis").chmod(0)
    unused = LocalCopy(CopyPolicy(str(tmp_path)), "unused", [1000], 10).folder
    others = {path.name for path in tmp_path.iterdir()} - {unused.name}
    copy = LocalCopy(CopyPolicy(str(tmp_path), 1000), "key", [1000], 10)
    assert {path.name for path in tmp_path.iterdir()} == others | {copy.folder.name}
    (tmp_path / "thesis").chmod(0o700)
    assert all((tmp_path / name / "text").is_file() for name in ("thesis", "lost+found", digest, "scratch"))
    assert len(list((tmp_path / "lost+found").iterdir())) == 1


def test_a_removal_that_is_killed_is_ended_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is killed: what is left of a copy may lack the files that tell one."""
    unused = LocalCopy(CopyPolicy(str(tmp_path)), "unused", [1000], 10).folder

    def killed(folder: Path) -> None:
        (folder / "present").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as short:
        short.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            LocalCopy(CopyPolicy(str(tmp_path), 1000), "key", [1000], 10)
    copy = LocalCopy(CopyPolicy(str(tmp_path), 1000), "key", [1000], 10)
    assert not unused.exists()
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [copy.folder]


def test_what_is_not_written_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor makes room: images that are kept stay while the disk is full."""
    monkeypatch.setattr(copies, "PIECE_BYTES", 100)
    copy = LocalCopy(CopyPolicy(str(tmp_path), 10, window_bytes=5), "key", [1000], 10)
    for row in range(2):
        copy.keep(extent(row, b"first"), b"first")
    copy = LocalCopy(CopyPolicy(str(tmp_path), 20, window_bytes=5), "key", [1000], 10)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", failing(errno.ENOSPC))
        for row in range(2, 10):
            copy.keep(extent(row, b"other"), b"other")
    assert copy.kept_bytes == 10
    for row in range(2, 5):
        copy.keep(extent(row, b"other"), b"other")
    assert [copy.read(extent(row, b"first")) for row in range(2)] == [None, b"first"], "the oldest made room"
    assert copy.kept_bytes == 20


def shard_of_20(folder: Path) -> tuple[list[bytes], pa.Table, Place]:
    """Return 20 samples of 10 bytes, their table, and a store that holds them in one file."""
    content = bytes(range(200))
    (folder / "shard").write_bytes(content)
    columns = {"row": range(20), "file": [0] * 20, "offset": range(0, 200, 10), "num_bytes": [10] * 20}
    table = pa.table({name: np.array(values) for name, values in columns.items()})
    parts = [content[start : start + 10] for start in range(0, 200, 10)]
    table = table.append_column("crc32", pa.array(map(zlib.crc32, parts), type=pa.int64()))
    table = table.append_column("path", pa.array(map(str, range(20)), type=pa.large_string()))
    place = Place("s3://b", "s3://b", fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "")
    return parts, table, place


@pytest.mark.parametrize("window_bytes", [None, 200], ids=["images", "windows"])
def test_other_bytes_of_the_same_size_are_neither_shown_nor_kept(window_bytes: int | None, tmp_path: Path) -> None:
    """A run trained on a shard that was replaced, and its copy counted the bytes again at every read."""
    parts, table, place = shard_of_20(tmp_path)
    (tmp_path / "shard").write_bytes(b"".join([*parts[:3], b"x" * 10, *parts[4:]]))
    policy = CopyPolicy(str(tmp_path / "copies"), window_bytes=window_bytes)
    images = RemoteExtents(place, [("shard", 200)], table, policy)
    for _ in range(3):
        with pytest.raises(Refused, match=r"^s3://b/shard: 3 has changed since it was indexed; restore it, or start"):
            images.read(np.array([2, 3]))
    assert images.read(np.array([2, 4])) == [parts[2], parts[4]]
    assert images.kept_bytes == (20 if window_bytes is None else 190)


def test_an_object_of_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "3.jpg").write_bytes(b"x" * 10)
    columns = {"row": [0], "place_in_copy": [0], "num_bytes": [10], "crc32": [zlib.crc32(b"y" * 10)]}
    table = pa.table({name: np.array(values) for name, values in columns.items()})
    table = table.append_column("path", pa.array(["3.jpg"], type=pa.large_string()))
    place = Place("s3://b", "s3://b", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "")
    images = RemoteFiles(place, [("", 10)], table, CopyPolicy(str(tmp_path / "copies")))
    with pytest.raises(Refused, match=r"^s3://b/3.jpg has changed since it was indexed"):
        images.read(np.array([0]))


def test_a_block_that_another_fetches_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that is asked for twice, as repeated views ask for it, is there once."""
    parts, table, place = shard_of_20(tmp_path)
    policy = CopyPolicy(str(tmp_path / "copies"), window_bytes=200)
    one, other = (RemoteExtents(place, [("shard", 200)], table, policy) for _ in range(2))
    fetching = LocalCopy.fetching

    @contextmanager
    def overtaken(copy: LocalCopy, file: int, block: int) -> Iterator[None]:
        monkeypatch.undo()
        other.read(np.array([1]))
        with fetching(copy, file, block):
            yield

    monkeypatch.setattr(LocalCopy, "fetching", overtaken)
    assert one.read(np.array([5, 5, 7])) == [parts[5], parts[5], parts[7]]

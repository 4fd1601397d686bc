"""Files that are under their name whole or not at all: nothing of one that was not written is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from matplotlib.figure import Figure

from kdcore.errors import Refused
from pipelines.files import (
    claim_name,
    own_temporary_folder,
    remove_unfinished,
    require_file_place,
    require_folder_place,
    sync,
    write_figure,
    write_whole,
)


def test_a_place_is_looked_at_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file and of a folder; nothing is made."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    require_file_place(Path("file"), "--output")
    require_file_place(Path("new/below/file"), "--output")
    require_folder_place(Path("new/below"), "--output")
    require_folder_place(Path(), "--output")
    for place in (".", "..", "/", str(tmp_path)):
        with pytest.raises(Refused, match=r"--output: .* is a folder; give the name of a file in it"):
            require_file_place(Path(place), "--output")
    for place in ("file", "file/below/x"):
        with pytest.raises(Refused, match=r"--output: .*file is a file, not a folder; give another place"):
            require_folder_place(Path(place), "--output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Refused("cut off"), KeyboardInterrupt()])
def test_what_ends_while_it_is_written_leaves_nothing(error: BaseException, tmp_path: Path) -> None:
    """Of a disk that is full, of what is refused on the way, of Ctrl-C."""

    def write(file: BinaryIO) -> None:
        file.write(b"half of it")
        raise error

    write_whole(tmp_path / "file", b"first")
    with pytest.raises((Refused, KeyboardInterrupt)):
        write_whole(tmp_path / "file", write)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}


def test_a_file_is_on_the_disk_before_it_has_its_name_and_the_name_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power leaves the old content or the new one, not an empty file under the new name."""
    done, sync, replace = [], os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        done.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))
        sync(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(tmp_path / "file", b"content")
    file, folder = ((path.stat().st_ino, path.stat().st_size) for path in (tmp_path / "file", tmp_path))
    assert done == [file, "renamed", folder]


def test_a_file_system_that_syncs_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are waited for none the less."""

    def refuse(number: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "file")


def test_what_was_killed_is_removed_and_nothing_else(tmp_path: Path) -> None:
    key = "0" * 32
    (tmp_path / f"shard.{key}.tmp").write_bytes(b"half of it")
    others = [f"thesis.{key}.tmp", "shard.tmp", "shard", f"linked.{key}.tmp"]
    for name in others[:-1]:
        (tmp_path / name).touch()
    (tmp_path / others[-1]).symlink_to(tmp_path / "shard")
    remove_unfinished(tmp_path, lambda name: name in ("shard", "linked"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("links", [True, False])
def test_a_name_is_for_one_alone(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file system has no hard links; nothing of one that could not be filled is left."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for name in ("ours", "theirs"):
        (tmp_path / name).write_bytes(name.encode())
    claim_name(tmp_path / "theirs", tmp_path / "name")
    with pytest.raises(FileExistsError):
        claim_name(tmp_path / "ours", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"theirs"
    with pytest.raises(FileNotFoundError):
        claim_name(tmp_path / "absent", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_link_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, whose client asks again, and hears of the name that it has just made."""
    link = os.link

    def ask_twice(*paths: Path) -> None:
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", ask_twice)
    (tmp_path / "ours").write_bytes(b"ours")
    claim_name(tmp_path / "ours", tmp_path / "name")
    assert (tmp_path / "name").read_bytes() == b"ours"


def test_a_temporary_folder_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the mask; one that another user has made beforehand, or a link, is refused."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    mask = os.umask(0)
    try:
        (tmp_path / "earlier").mkdir()
        folders = [own_temporary_folder(name) for name in ("files", "earlier")]
    finally:
        os.umask(mask)
    assert folders == [tmp_path / f"files-{os.getuid()}", tmp_path / "earlier"]
    assert not any(folder.stat().st_mode & 0o022 for folder in folders)
    (tmp_path / f"link-{os.getuid()}").symlink_to(tmp_path / "earlier")
    (tmp_path / "link").symlink_to(tmp_path / "earlier")
    with pytest.raises(
        Refused, match=r"link-\d+ is another user's, or a link; remove it, or set TMPDIR to a folder of"
    ):
        own_temporary_folder("link")
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    (tmp_path / "files-4711").mkdir()
    with pytest.raises(Refused, match=r"files-4711 is another user's"):
        own_temporary_folder("files")


@pytest.mark.filterwarnings("error")
def test_a_figure_with_letters_of_no_font_is_written(tmp_path: Path) -> None:
    figure = Figure(figsize=(1, 1))
    figure.text(0.5, 0.5, "\N{CJK UNIFIED IDEOGRAPH-732B}")
    write_figure(tmp_path / "cat.png", figure)
    assert (tmp_path / "cat.png").stat().st_size

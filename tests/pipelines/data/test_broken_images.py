"""Images that are broken at indexing, that break later, or are written over: refused, or replaced on request."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from pipelines.data import index
from pipelines.data.broken import Acceptance
from pipelines.data.index import open_index
from pipelines.data.source import Source
from pipelines.loaders.base import Request
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.data.test_kinds import build
from tests.pipelines.pictures import picture, write_plain_folder


def test_broken_images_are_left_out_on_request(tmp_path: Path) -> None:
    write_plain_folder(tmp_path / "images", num=240)
    bad = tmp_path / "images" / "train" / "1" / "bad.jpg"
    bad.write_bytes(b"no image")
    write_plain_folder(tmp_path / "whole", num=240)
    whole = build(tmp_path / "whole")
    for container in CONTAINERS:
        out = tmp_path / container
        out.mkdir()
        if container != "pack":
            CONTAINERS[container](tmp_path / "images", "train", out)
            with pytest.raises(Refused, match=r"bad.jpg cannot be read as an image"):
                build(out)
            source = build(out, acceptance=Acceptance("skip"))
            assert source.fingerprint == whole.fingerprint
            assert [message for message in source.broken if "bad.jpg" in message] == list(source.broken)
            assert len(source.broken) == 1
            assert open_index(out, "train", out / "index", acceptance=Acceptance("skip")).broken == source.broken
    for name in "abc":
        (bad.parent / f"{name}.jpg").write_bytes(b"nor this")
    with pytest.raises(Refused, match=r"4 of the 244 images in .* are broken, more than the 1% .*; repair them"):
        build(tmp_path / "images", acceptance=Acceptance("skip"))


@pytest.mark.parametrize("container", ["folder", "tar of folders", "pack"])
@pytest.mark.parametrize("loader", ["reference", "dali"])
def test_images_that_break_later_are_black_on_request(container: str, loader: str, tmp_path: Path) -> None:
    """The bytes of one change behind the index's back, its size does not: every loader shows a black picture."""
    for name in ("images", "out"):
        (tmp_path / name).mkdir()
    write_plain_folder(tmp_path / "images", num=12)
    CONTAINERS[container](tmp_path / "images", "train", tmp_path / "out")
    whole = build(tmp_path / "out", acceptance=Acceptance("skip"))
    before, victim = whole.read(np.arange(12)), 7
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and "index" not in path.parent.name and before[victim] in path.read_bytes():
            times = path.stat()
            path.write_bytes(path.read_bytes().replace(before[victim], b"?" * len(before[victim])))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    source = build(tmp_path / "out", acceptance=Acceptance("skip"))
    assert source.fingerprint == whole.fingerprint
    plan = ViewPlan(ViewPolicy.evaluation(24), 0, 12)
    made = build_loader(
        loader,  # type: ignore[arg-type]
        source,
        plan,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        device=torch.device("cpu"),
        max_batch=12,
    )
    (batch,) = made.load([Request(0, np.arange(12))])
    assert [int(row) for row in (batch.images.amax(dim=(1, 2, 3)) == 0).nonzero()] == [victim]
    assert list(source.replaced) == [victim]
    after = source.read(np.arange(12))
    assert [row for row in range(12) if after[row] != before[row]] == [victim]


@pytest.fixture
def unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Source, Path]:
    """The images of a folder in which a command looks at the first file only, and its third one."""
    monkeypatch.setattr("pipelines.data.traces._MAX_FILES", 1)
    write_plain_folder(tmp_path / "images", num=6)
    source = build(tmp_path / "images")
    return source, Path(source.names(np.array([2]))[0])


def write_over(file: Path, is_longer: bool) -> bytes:
    """Write over a file in place; return its content."""
    other = file.read_bytes() + b"appended" if is_longer else bytes(reversed(file.read_bytes()))
    with file.open("r+b") as opened:
        opened.write(other)
    return other


@pytest.mark.parametrize("is_longer", [True, False])
def test_a_file_written_over_in_place_is_found_when_it_is_read(is_longer: bool, unseen: tuple[Source, Path]) -> None:
    """What is cheap does not show it, reading does, and the next command then looks at every file."""
    source, file = unseen
    root = Path(source.root)
    write_over(file, is_longer)
    unnoticed = build(root)
    assert unnoticed.fingerprint == source.fingerprint
    complaint = r"its size is no longer the \d+ bytes that were indexed" if is_longer else "has changed since it was"
    with pytest.raises(Refused, match=complaint):
        unnoticed.read(np.arange(6))
    open_index(root, "train", root / "index")  # another run's workers may start meanwhile
    picture(9, 9, 1).save(file, "PNG")  # repaired in place
    found = build(root)
    assert found.fingerprint != source.fingerprint
    assert found.read(np.array([2])) == [file.read_bytes()]
    assert not list((root / "index").glob("*.doubted"))


@pytest.mark.parametrize("is_longer", [True, False])
def test_a_run_goes_on_with_a_black_picture(is_longer: bool, unseen: tuple[Source, Path]) -> None:
    """Its images stay those that it began with, until something is refused: here, to pack the black picture."""
    root, acceptance = Path(unseen[0].root), Acceptance("skip")
    source = build(root, acceptance=acceptance)
    other = write_over(unseen[1], is_longer)
    for _ in range(2):
        again = build(root, acceptance=acceptance)
        assert again.fingerprint == source.fingerprint
        black = again.read(np.arange(6))[2]
        assert black != other
        assert list(again.replaced) == [2]
    with pytest.raises(Refused, match="has changed since it was indexed"):
        again.check(2, black)
    picture(9, 9, 1).save(unseen[1], "PNG")
    assert build(root, acceptance=acceptance).read(np.array([2])) == [unseen[1].read_bytes()]


def test_a_picture_that_cannot_be_decoded_is_looked_at_by_the_next_command(
    unseen: tuple[Source, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = unseen
    with pytest.raises(Refused, match="cannot be read as an image"):
        source.decode(2, b"no image")
    looked_at: list[int] = []
    listed = index.take_traces
    monkeypatch.setattr(index, "take_traces", lambda *given: looked_at.append(1) or listed(*given))
    for _ in range(2):
        assert build(Path(source.root)).fingerprint == source.fingerprint
    assert looked_at == [1]


def test_files_with_other_times_are_the_same_images(unseen: tuple[Source, Path]) -> None:
    """One that was only touched, or copied from elsewhere, is told by its checksum."""
    source, file = unseen
    content = file.read_bytes()
    os.utime(file, ns=(1, 1))
    assert source.read(np.array([2])) == [content]
    assert build(Path(source.root), relist=True).fingerprint == source.fingerprint


def test_two_files_that_change_places(tmp_path: Path) -> None:
    """Of one size and time, as pictures without compression from an archive without times."""
    names = [tmp_path / "images" / "train" / label / f"{label}.bmp" for label in "ab"]
    for number, name in enumerate(names):
        name.parent.mkdir(parents=True)
        picture(9, 9, number).save(name)
        os.utime(name, (0, 0))
    before = build(tmp_path / "images")
    names[0].rename(tmp_path / "x")
    names[1].rename(names[0])
    (tmp_path / "x").rename(names[1])
    after = build(tmp_path / "images")
    assert after.fingerprint != before.fingerprint
    assert after.read(np.arange(2)) == [name.read_bytes() for name in names]

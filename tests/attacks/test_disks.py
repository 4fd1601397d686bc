"""Disks that are full or closed: one line with the place and what is needed, and nothing half-written read back."""

from __future__ import annotations

import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
import yaml
from pyarrow.fs import LocalFileSystem

from cluster.recipe.reading import load_recipe
from cluster.sweep.journal import SweepJournal
from cluster.tracking.folder import RunFolder
from cluster.tracking.run import RunLog
from cluster.training.checkpoint import Snapshot
from kdcore.errors import Refused
from ops.__main__ import main
from pipelines.cache.store import Unit, write_shard
from pipelines.files import write_whole
from tests.conftest import small_recipe
from tests.pipelines.cache.test_store import rows_of

Usage = namedtuple("Usage", "total used free")
FULL = "cannot be written .*No space left on device"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB in memory, full but for what a file's name takes."""
    with mounted(tmp_path / "disk") as folder:
        yield folder


@pytest.fixture
def closed_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody, root included, can write to."""
    with mounted(tmp_path / "closed") as folder:
        remount(folder, "ro")
        yield folder


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of 64 KiB in memory."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def repeat(call: Callable[[int], object]) -> None:
    for number in range(1000):
        call(number)


def test_a_file_that_was_there_stays(small_disk: Path) -> None:
    write_whole(small_disk / "file", b"first")
    with pytest.raises(Refused, match=FULL):
        write_whole(small_disk / "file", b"x" * 2**20)
    assert (small_disk / "file").read_bytes() == b"first"
    assert [one.name for one in small_disk.iterdir()] == ["file"]


def test_a_checkpoint(small_disk: Path) -> None:
    state = {"distiller": {"student.w": torch.zeros(2**18)}, "ema": None}
    with pytest.raises(Refused, match=FULL):
        Snapshot(state).write(LocalFileSystem(), str(small_disk / "step-00000001"))


def test_a_shard(small_disk: Path) -> None:
    unit = Unit("train", 0, 0, 100_000)
    with pytest.raises(Refused, match=FULL):
        write_shard(small_disk, unit, rows_of(unit), "key")
    assert not (small_disk / unit.path).exists()
    assert not (small_disk / unit.note).exists()


def test_the_journal_of_a_sweep(small_disk: Path) -> None:
    journal = SweepJournal(small_disk / "journal.jsonl")
    journal.open()
    fill(small_disk)
    with pytest.raises(Refused, match=f"journal.jsonl {FULL}"):
        repeat(lambda number: journal.begin(f"t{number}", number, {"optimizer.lr": 0.1}, 0))


def test_the_journal_of_a_run(small_disk: Path, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(image_folder, small_disk)))
    log = RunLog.__new__(RunLog)
    log.fence, log.error, log.known = None, None, set()
    log.folder = RunFolder.of(load_recipe(tmp_path / "recipe.yaml"))
    log.folder.path.mkdir()
    log.file = log.folder.metrics.open("a")
    fill(small_disk)
    with pytest.raises(Refused, match=f"metrics.jsonl {FULL}"):
        repeat(lambda step: log.log(step, {"train/loss": 1.0}))


def test_free_space_is_looked_at_before_a_cache_is_built(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(image_folder, tmp_path / "out", scaling={"num_workers": 0})
    recipe |= {"cache": {"dir": str(tmp_path / "cache")}, "teacher": {"model": "cifar_resnet8", "random": True}}
    recipe["method"] = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]
    recipe["views"]["num_views"] = 2
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    assert main(["cache", "build", str(tmp_path / "recipe.yaml")]) == 2
    said = capfd.readouterr().err
    assert "the shards of the cache take" in said
    assert "has 10 free" in said
    assert not list((tmp_path / "cache").rglob("*.arrow"))


def said_in_one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """What was said of an error; nothing more than a line."""
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("stillhouse: ")]
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("command", ["train", "cache build", "sweep", "data pack", "data show", "keys"])
def test_a_place_that_is_closed_is_named_in_one_line(
    closed_disk: Path, image_folder: Path, tmp_path: Path, command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    at = closed_disk / "place"
    recipe = small_recipe(image_folder, tmp_path / "out", scaling={"num_workers": 0}, data__held_out=0.2)
    recipe |= {"cache": {"dir": str(tmp_path / "cache")}, "teacher": {"model": "cifar_resnet8", "random": True}}
    recipe["views"]["num_views"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text("name: lrs\nspace: {optimizer.lr: [0.05, 0.1]}\n")
    path, images = str(tmp_path / "recipe.yaml"), str(image_folder)
    words = {
        "train": ["train", path, f"output_dir={at}"],
        "cache build": ["cache", "build", path, f"cache.dir={at}"],
        "sweep": ["sweep", path, "--space", str(tmp_path / "space.yaml"), f"output_dir={at}"],
        "data pack": ["data", "pack", images, "-o", str(at), "--index", str(tmp_path / "index")],
        "data show": ["data", "show", images, "--index", str(at)],
        "keys": ["keys", str(at / "maria.pem")],
    }[command]
    assert main(words) == 2
    said = said_in_one_line(capfd)
    assert str(at) in said
    assert "Read-only file system" in said
    assert "give a place that can be written to" in said


def test_a_pack_on_a_disk_that_fills_is_not_read_and_goes_on_when_there_is_room(
    small_disk: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    words = ["data", "pack", str(image_folder), "-o", str(small_disk / "pack"), "--index", str(tmp_path / "index")]
    (small_disk / "filler").write_bytes(bytes(24 * 1024))
    assert main(words) == 2
    assert "free" in said_in_one_line(capfd)
    with monkeypatch.context() as patch:  # as if it filled meanwhile
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**9))
        assert main(words) == 2
    assert "No space left on device" in said_in_one_line(capfd)
    show = ["data", "show", str(small_disk / "pack"), "--index", str(tmp_path / "other")]
    assert main(show) == 2  # what there is of it is no source
    said_in_one_line(capfd)
    remount(small_disk, "size=4m")
    assert main(words) == 0
    assert main(["data", "verify", str(small_disk / "pack")]) == 0

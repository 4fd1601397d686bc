"""What a disk fails of for a moment is asked for again, is no image's fault, and open files are bounded in number."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kdcore.errors import Refused, RunFailed
from pipelines.data.broken import Acceptance
from pipelines.data.copies import CopyPolicy, LocalCopy
from pipelines.data.disk import OpenFile, OpenFiles
from pipelines.data.index import build_index
from pipelines.data.source import Source
from pipelines.leases import leased
from tests.pipelines.containers import CONTAINERS
from tests.pipelines.pictures import write_plain_folder

NAMES = {"folder": "open", "pack": "preadv"}  # {container: what reads it}
Failing = Callable[..., None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Let a function of the system fail with an error so many times, for images alone."""
    monkeypatch.setattr("pipelines.data.disk._WAITS_SECONDS", (0, 0, 0))

    def fail(name: str, error: int, times: int, ending: str = ".jpg") -> None:
        real, left = getattr(os, name), [times]

        def one(first: object, *others: object, **options: object) -> object:
            is_image = name == "preadv" or str(first).endswith(ending)
            if is_image and left[0]:
                left[0] -= 1
                raise OSError(error, os.strerror(error), str(first))
            return real(first, *others, **options)

        monkeypatch.setattr(os, name, one)

    return fail


def source_of(container: str, tmp_path: Path) -> Source:
    write_plain_folder(tmp_path / "images", num=8)
    (tmp_path / "out").mkdir()
    CONTAINERS[container](tmp_path / "images", "train", tmp_path / "out")
    return build_index(tmp_path / "out", "train", tmp_path / "index", acceptance=Acceptance("skip"), progress=False)


@pytest.mark.parametrize("container", NAMES)
@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_an_error_that_passes_changes_nothing(container: str, error: int, tmp_path: Path, failing: Failing) -> None:
    source = source_of(container, tmp_path)
    expected = [bytes(content) for content in source.read(np.arange(8))]
    failing(NAMES[container], error, 3)
    assert source.read(np.arange(8)) == expected
    assert not source.replaced


@pytest.mark.parametrize("container", NAMES)
@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (errno.EIO, r"cannot be read \(Input/output error, in 4 tries\); repair its disk or mount and start again"),
        (errno.EMFILE, r"\(Too many open files, in 4 tries\); this process may have [\d,-]+ files open: .*ulimit -n"),
    ],
)
def test_an_error_that_stays_is_no_black_picture(
    container: str, error: int, complaint: str, tmp_path: Path, failing: Failing
) -> None:
    source = source_of(container, tmp_path)
    failing(NAMES[container], error, -1)
    with pytest.raises(RunFailed, match=complaint):
        source.read(np.arange(8))
    assert not source.replaced


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_images_are_not_left_out_for_want_of_descriptors(error: int, tmp_path: Path, failing: Failing) -> None:
    write_plain_folder(tmp_path, num=200)
    failing("open", error, -1, ending="/000.jpg")  # one of 200, which could be left out
    with pytest.raises(RunFailed, match=r"cannot be read \(.*, in 4 tries\)"):
        build_index(tmp_path, "train", tmp_path / "index", acceptance=Acceptance("skip"), progress=False)


def test_a_file_that_may_not_be_read_is_no_black_picture(tmp_path: Path, failing: Failing) -> None:
    source = source_of("folder", tmp_path)
    failing("open", errno.EACCES, -1)
    with pytest.raises(Refused, match=r"cannot be read as an image \(Permission denied\)"):
        source.read(np.arange(8))


def test_a_missing_file_is_a_black_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = source_of("folder", tmp_path)
    Path(source.names(np.array([3]))[0]).unlink()
    with caplog.at_level(logging.WARNING):
        source.read(np.arange(8))
    assert list(source.replaced) == [3]


@pytest.mark.parametrize("container", ["folder", "tar of folders", "pack"])
def test_a_node_without_its_mount_shows_no_black_pictures(container: str, tmp_path: Path) -> None:
    source = source_of(container, tmp_path)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    with pytest.raises(Refused, match=r"cannot be read.*\(No such file or directory\)"):
        source.read(np.arange(8))
    assert not source.replaced


def test_black_pictures_are_bounded(tmp_path: Path) -> None:
    """As where a folder is there and nothing is mounted on it."""
    source = source_of("folder", tmp_path)
    for name in source.names(np.array([3, 5])):
        Path(name).unlink()
    with pytest.raises(RunFailed, match=r"^2 of the 8 images in .* cannot be read on the node .* more than the 1%"):
        source.read(np.arange(8))


def limited(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (num, num))


def num_open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_open_files_of_all_sources_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in threads, files make room for each other, none under a reader's hands."""
    limited(monkeypatch, 2 * (sum(map(len, OpenFiles._all)) + 10))
    for number in range(40):
        (tmp_path / str(number)).write_bytes(bytes([number]))
    before, wrong = num_open(), []

    def read(files: OpenFiles) -> None:
        for number in np.random.default_rng(0).integers(0, 40, 300).tolist():
            file = files.get(number) or files.open(number, lambda path=str(tmp_path / str(number)): OpenFile(path, 0))
            if os.pread(file.descriptor, 1, 0) != bytes([number]):
                wrong.append(number)

    sources = [OpenFiles(), OpenFiles()]
    threads = [threading.Thread(target=read, args=(sources[number % 2],)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(map(len, sources)) <= 10
    assert num_open() - before <= 10
    sources.clear()
    assert num_open() == before


def test_a_nodes_copy_bounds_its_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = LocalCopy(CopyPolicy(str(tmp_path)), "key", [1000] * 30, 30)
    limited(monkeypatch, 2 * (sum(map(len, OpenFiles._all)) + 5))
    before = num_open()
    for number in range(30):
        copy._file(number, 0)
    assert num_open() - before <= 5


def test_a_lease_is_given_back_where_no_file_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as full, leased(tmp_path, "work"):

        def fail(*_: object) -> bytes:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        full.setattr(Path, "read_bytes", fail)
    assert not (tmp_path / ".work.lease").exists()

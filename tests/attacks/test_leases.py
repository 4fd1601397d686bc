"""One folder, one process: on one machine, on several, and with holders that are killed, held up, or only slow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.recipe.reading import load_recipe
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.run import RunLog
from kdcore.errors import Refused, RunFailed
from ops.__main__ import main
from pipelines import leases
from pipelines.leases import Fence, Holder, generation_of, leased
from tests.conftest import small_recipe
from tests.processes import forking


def hold(folder: Path, held: Event) -> None:
    with leased(folder, "a test"):
        held.set()
        threading.Event().wait()


@contextmanager
def another_process(folder: Path) -> Iterator[BaseProcess]:
    """A process that holds the folder."""
    held = forking().Event()
    process = forking().Process(target=hold, args=(folder, held))
    process.start()
    try:
        assert held.wait(60)
        yield process
    finally:
        process.kill()
        process.join()


def another_machine(folder: Path) -> Path:
    """The lease of a process elsewhere; whoever touches it is alive."""
    path = folder / ".work.lease"
    path.write_text(json.dumps(asdict(replace(Holder.this("a test"), machine="other", host="node7"))))
    return path


def test_the_second_is_refused_and_the_killed_ones_place_is_free_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with another_process(tmp_path) as process:
        with (
            pytest.raises(Refused, match=rf"in use by process {process.pid} on .*, at a test since"),
            leased(tmp_path, "x"),
        ):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        began = time.monotonic()
        with leased(tmp_path, "x"):
            assert time.monotonic() - began < 1
    assert f"taken over, because process {process.pid} on" in caplog.text
    assert not list(tmp_path.glob("*.lease"))


def test_a_number_of_a_process_that_another_has_now_is_no_holder(tmp_path: Path) -> None:
    """After a restart, the number in the lease may be that of any program."""
    holder = replace(Holder.this("a test"), started=1)
    (tmp_path / ".work.lease").write_text(json.dumps(asdict(holder)))
    with leased(tmp_path, "x"):
        pass


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ProcessLookupError])
def test_a_holder_that_the_system_hides_is_watched_as_one_elsewhere(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As /proc does with hidepid; and a process that ends while its file there is read. Touched, it is alive."""

    def hide(self: Path, *args: Any, **options: Any) -> str:
        if self.match("/proc/*/stat"):
            raise error
        return read_text(self, *args, **options)

    read_text, alive, path = Path.read_text, Holder.this("a test"), tmp_path / ".work.lease"
    monkeypatch.setattr(Path, "read_text", hide)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)
    path.write_text(json.dumps(asdict(alive)))
    touching = threading.Timer(0.1, lambda: os.utime(path, ns=(1, 1)))
    touching.start()
    with pytest.raises(Refused, match=f"in use by process {os.getpid()} "), leased(tmp_path, "x"):
        pass
    touching.join()
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.1)
    with leased(tmp_path, "x"):
        assert "has not been heard from" in caplog.text
    with subprocess.Popen(["true"]) as ended:
        pass
    assert replace(alive, process=ended.pid).is_alive is False


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"key": 1}'])
def test_a_lease_that_cannot_be_read_is_waited_for_and_taken(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.3)
    (tmp_path / ".work.lease").write_text(content)
    with leased(tmp_path, "x"):
        pass


def test_a_holder_on_another_node_that_is_silent_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.5)
    another_machine(tmp_path)
    with leased(tmp_path, "x"):
        assert "on node7, at a test since" in caplog.text


def test_a_holder_on_another_node_that_lives_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "STALE_SECONDS", 30.0)
    path = another_machine(tmp_path)
    touching = threading.Timer(0.5, lambda: os.utime(path, ns=(1, 1)))
    touching.start()
    with pytest.raises(Refused, match="on node7"), leased(tmp_path, "x"):
        pass
    touching.join()


def test_who_waits_gets_its_turn(tmp_path: Path) -> None:
    order, inside = [], threading.Event()

    def first() -> None:
        with leased(tmp_path, "x"):
            inside.set()
            time.sleep(0.5)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait()
    with leased(tmp_path, "x", wait=True):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_of_many_who_find_a_dead_holder_one_takes_its_place_at_a_time(tmp_path: Path) -> None:
    holder = replace(Holder.this("a test"), started=1)
    (tmp_path / ".work.lease").write_text(json.dumps(asdict(holder)))
    inside, most, lock = 0, 0, threading.Lock()

    def enter() -> None:
        nonlocal inside, most
        with leased(tmp_path, "x", wait=True):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.02)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert generation_of(tmp_path, "work") == 8


def test_a_lease_with_a_new_holder_is_not_touched_by_who_found_the_old_one_dead(tmp_path: Path, monkeypatch) -> None:
    """Not for an instant: whoever looks then would find none, and enter, too."""
    path, old = tmp_path / ".work.lease", replace(Holder.this("a test"), started=1)
    changes = []
    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(Path, name, watched(getattr(Path, name), path, changes))
    with leased(tmp_path, "x"):
        leases._end(path, old, "it has ended")
        assert changes == []
        assert path.exists()
    assert changes == ["unlink"]


def test_a_takeover_that_was_killed_does_not_stand_in_the_way(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)
    (tmp_path / ".work.lease").write_text(json.dumps(asdict(replace(Holder.this("a test"), started=1))))
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.1)
    (tmp_path / ".work.lease.ending").touch()
    with leased(tmp_path, "x"):
        assert generation_of(tmp_path, "work") == 1


def watched(call: Callable[..., Any], path: Path, changes: list[str]) -> Callable[..., Any]:
    """The same method of a path, which notes that it was called of this one."""

    def noting(self: Path, *args: Any, **options: Any) -> Any:
        if self == path:
            changes.append(call.__name__)
        return call(self, *args, **options)

    return noting


def test_the_late_worker_of_a_killed_driver_writes_nothing_more(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(small_recipe(image_folder, tmp_path / "out")))
    config = load_recipe(tmp_path / "recipe.yaml")
    folder = RunFolder.of(config)
    folder.path.mkdir(parents=True)
    fence = Fence(str(folder.path), "work", 1)
    (folder.path / ".work.generation").write_text("1")
    folder.metrics.write_text('{"step": 2, "time": 1}\n')
    late = RunLog.__new__(RunLog)
    late.fence, late.error, late.folder = fence, None, folder
    with leased(folder.path, "x"):
        with pytest.raises(RunFailed, match="now belongs to another process"):
            late.log(3, {"train/loss": 1.0})
        with pytest.raises(RunFailed, match="now belongs to another process"):
            RunLog(config, 2, fence)
    assert [row["step"] for row in read_journal(folder.metrics)] == [2]


@pytest.mark.parametrize("command", ["train", "cache build", "sweep", "data pack"])
def test_a_command_refuses_a_folder_that_another_works_in(
    command: str, image_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(image_folder, tmp_path / "out", scaling={"num_workers": 0}, data__held_out=0.2)
    recipe["cache"] = {"dir": str(tmp_path / "cache")}
    recipe["teacher"] = {"model": "cifar_resnet8", "random": True}
    recipe["views"]["num_views"] = 1
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text("name: lrs\nspace: {optimizer.lr: [0.05, 0.1]}\n")
    words, folder = {
        "train": (["train", "recipe.yaml"], "out/run"),
        "cache build": (["cache", "build", "recipe.yaml"], "cache"),
        "sweep": (["sweep", "recipe.yaml", "--space", "space.yaml"], "out/lrs"),
        "data pack": (["data", "pack", str(image_folder), "-o", str(tmp_path / "pack")], "pack"),
    }[command]
    words = [str(tmp_path / word) if word.endswith(".yaml") else word for word in words]
    (tmp_path / folder).mkdir(parents=True)
    with another_process(tmp_path / folder) as process:
        assert main(words) == 2
    said = capfd.readouterr().err
    assert f"in use by process {process.pid}" in said
    assert len(said.splitlines()) == 1

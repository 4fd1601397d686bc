"""The doctor's findings: what is seen on this machine, and the remedy for what is not there."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sqlite3
import threading
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from rich.console import Console

from ops.doctor import probes
from ops.doctor import report as doctor
from ops.doctor.findings import Finding
from ops.doctor.probes import GIB
from ops.doctor.report import diagnose, failed, render, run_probe
from tests.ops.doctor.probing import only, raiser

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment of a newcomer."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def open_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_every_probe_answers_on_this_machine_and_leaves_nothing_behind(tmp_path):
    findings = diagnose(str(tmp_path / "not" / "yet"))
    assert list(dict.fromkeys(finding.area for finding in findings)) == list(probes.PROBES)
    assert not [finding for finding in findings if "the check failed" in finding.seen or "no answer" in finding.seen]
    assert all(bool(finding.remedy) == (finding.level != "ok") for finding in findings)
    by_area = {finding.area: finding for finding in findings}
    assert f"torch {torch.__version__.partition('+')[0]}" in by_area["libraries"].seen
    assert by_area["distributed"].level == by_area["decoders"].level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_failed_asks_for_failures_only():
    assert not failed([])
    assert not failed([Finding("a", "ok", "x"), Finding("b", "warn", "y", "z")])
    assert failed([Finding("a", "ok", "x"), Finding("b", "fail", "y", "z")])


def test_the_table_shows_everything_literally():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render([Finding("disk", "ok", "[bold]5 GiB[/bold]"), Finding("ray", "fail", "no port", "open it")]))
    shown = console.export_text()
    assert "[bold]5 GiB[/bold]" in shown
    assert "-> open it" in shown
    assert "1 ok, 0 warn, 1 fail" in shown


def test_a_probe_that_raises_is_a_finding_and_keeps_what_it_found():
    def half(output_dir: Path):
        yield Finding("disk", "ok", "first")
        raise OSError("the disk is gone")

    first, second = run_probe("disk", half, Path())
    assert first == Finding("disk", "ok", "first")
    assert "OSError: the disk is gone" in only([second], "fail").seen


def test_a_probe_that_hangs_is_a_finding(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.05)
    gate = threading.Event()
    found = run_probe("gpu", lambda output_dir: iter(gate.wait, True), Path())
    gate.set()
    assert only(found, "fail").seen == "no answer within 0.05 s"


def test_a_missing_and_an_old_library_are_failures(monkeypatch):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "mlflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"timm": "1.0.3", "torch": "2.100.0+cu130"}.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    *wrong, seen = probes.probe_libraries(Path())
    assert {finding.seen.split(" is ")[0]: finding.remedy for finding in wrong} == {
        "mlflow": "make env",
        "timm 1.0.3": "make env",
    }
    assert "torch 2.100.0+cu130" in seen.seen


def test_an_old_python_is_a_failure(monkeypatch):
    monkeypatch.setattr(probes.platform, "python_version", lambda: "3.9.18")
    old, _ = probes.probe_libraries(Path())
    assert only([old], "fail") == Finding(
        "libraries", "fail", "python 3.9.18 is older than 3.11", "take a Python >= 3.11 and make env"
    )


def test_few_cores_and_little_memory_are_warnings(monkeypatch, tmp_path):
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [0, 1, 2])
    monkeypatch.setattr(probes, "CGROUP_MEMORY", tmp_path / "memory.max")
    assert "3 CPU cores" in next(iter(probes.probe_machine(Path()))).seen
    (tmp_path / "memory.max").write_text("max\n")
    assert probes.memory_bytes() == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text(f"{2 * GIB}\n")
    assert "2.0 GiB" in only(probes.probe_machine(Path()), "warn").seen
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [5])
    assert "share one core" in only(probes.probe_machine(Path()), "warn").remedy


def test_a_driver_that_torch_cannot_use_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "init", raiser(RuntimeError("The NVIDIA driver\n is too old")))
    monkeypatch.setattr(probes, "NVIDIA_DRIVER", tmp_path / "version")
    assert "none." in only(probes.probe_gpu(Path()), "warn").seen
    (tmp_path / "version").write_text("NVRM version: 470.1\nGCC version: 9\n")
    finding = only(probes.probe_gpu(Path()), "fail")
    assert "(NVRM version: 470.1)" in finding.seen
    assert "The NVIDIA driver is too old" in finding.seen
    assert "install a driver for CUDA" in finding.remedy
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden by CUDA_VISIBLE_DEVICES" in only(probes.probe_gpu(Path()), "warn").seen


def test_nccl_is_missed_only_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert only(probes.probe_distributed(Path()), "ok").seen == "torch.distributed has gloo"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "lacks nccl" in only(probes.probe_distributed(Path()), "fail").remedy
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert "lacks gloo and nccl" in only(probes.probe_distributed(Path()), "fail").remedy


def test_without_an_address_ray_is_well():
    assert "starts its own cluster" in only(probes.probe_ray(Path()), "ok").seen


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
def test_a_cluster_that_answers_and_one_that_does_not(monkeypatch, open_port, closed_port, form):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", form.format(open_port))
    assert only(probes.probe_ray(Path()), "ok").seen.endswith("answers")
    monkeypatch.setenv("RAY_ADDRESS", form.format(closed_port))
    finding = only(probes.probe_ray(Path()), "fail")
    assert f":{closed_port} does not answer" in finding.seen
    assert "ray start --head" in finding.remedy


@pytest.mark.parametrize("address", ["127.0.0.1:notaport", "http://[::1", ":", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_failure(monkeypatch, address):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", address)
    only(probes.probe_ray(Path()), "fail")


def test_tokens_are_asked_for(monkeypatch, open_port, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{open_port}")
    answers, unset = probes.probe_ray(Path())
    assert answers.level == "ok"
    assert "RAY_AUTH_MODE=token" in only([unset], "warn").remedy
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    _, missing = probes.probe_ray(Path())
    assert "ray get-auth-token --generate" in only([missing], "fail").remedy
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("secret")
    found = only(probes.probe_ray(Path()), "ok")
    assert "secret" not in found.seen


def test_a_store_can_be_made_or_written(tmp_path):
    assert "can be made" in only(probes.probe_mlflow(tmp_path / "runs"), "ok").seen
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE runs (id INTEGER)").connection.close()
    assert "can be written" in only(probes.probe_mlflow(tmp_path), "ok").seen
    tables = sqlite3.connect(tmp_path / "mlflow.db").execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("runs",)]


def test_a_store_that_is_locked_or_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "CONNECT_SECONDS", 0.05)
    writer = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    writer.execute("CREATE TABLE runs (id INTEGER)")
    writer.execute("BEGIN IMMEDIATE")
    assert "is locked" in only(probes.probe_mlflow(tmp_path), "warn").seen
    writer.close()
    (tmp_path / "mlflow.db").write_bytes(b"no database at all" * 100)
    finding = only(probes.probe_mlflow(tmp_path), "fail")
    assert "not a database" in finding.seen
    assert "tracking.uri" in finding.remedy


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(probes.tempfile, "TemporaryDirectory", raiser(PermissionError("read-only")))
    assert "read-only" in only(probes.probe_mlflow(tmp_path), "fail").seen


def test_a_tracking_server_is_asked(tmp_path, monkeypatch, open_port, closed_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{open_port}/sub")
    assert [finding.level for finding in probes.probe_mlflow(tmp_path)] == ["ok", "ok"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    _, server = probes.probe_mlflow(tmp_path)
    assert "mlflow server" in only([server], "fail").remedy


@pytest.mark.parametrize(("free_gib", "level"), [(50, "ok"), (5, "warn"), (0.5, "fail")])
def test_free_space_is_judged(tmp_path, monkeypatch, free_gib, level):
    asked = []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: asked.append(folder) or Usage(0, 0, int(free_gib * GIB)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    output, temporary = probes.probe_disk(tmp_path / "not" / "yet")
    assert asked[0] == tmp_path
    for finding in (output, temporary):
        assert f"{free_gib:.1f} GiB free" in only([finding], level).seen


def test_little_shared_memory_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(probes, "memory_bytes", lambda: 10 * GIB)
    monkeypatch.setattr(probes, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, GIB // 16))
    assert "--shm-size=4g" in only(probes.probe_shared_memory(Path()), "warn").remedy
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 4 * GIB))
    only(probes.probe_shared_memory(Path()), "ok")
    monkeypatch.setattr(probes, "SHARED_MEMORY", tmp_path / "none")
    only(probes.probe_shared_memory(Path()), "warn")


def test_libraries_without_compiled_files_are_a_warning(monkeypatch, tmp_path):
    cached = tmp_path / "there.pyc"
    cached.touch()
    monkeypatch.setattr(probes.importlib.util, "cache_from_source", lambda origin: str(cached))
    only(probes.probe_bytecode(Path()), "ok")
    monkeypatch.setattr(probes.importlib.util, "cache_from_source", lambda origin: str(tmp_path / "none.pyc"))
    finding = only(probes.probe_bytecode(Path()), "warn")
    assert finding.seen == "torch, ray, mlflow without compiled files"
    assert "PYTHONDONTWRITEBYTECODE" in finding.remedy

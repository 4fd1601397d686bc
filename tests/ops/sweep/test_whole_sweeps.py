"""Whole sweeps on a Ray cluster, also killed and restored; what is left in files and MLflow."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
import ray
import safetensors.torch
import torch
import yaml
from ray.util.state import list_actors

from cluster.recipe.reading import load_recipe
from cluster.sweep.journal import SweepJournal, Trial
from cluster.sweep.run import JOURNAL
from ops.__main__ import main
from tests.commands import Command
from tests.ops.sweep.conftest import PAIRS


def trials(out: Path) -> dict[str, Trial]:
    """What the journal of the sweep says."""
    journal = SweepJournal(out / "s" / JOURNAL)
    journal.read()
    return journal.trials


@pytest.mark.ray
@pytest.mark.slow
def test_a_whole_sweep(ray_cluster, command, tmp_path, capsys):
    """Two at a time over one cache: a point that makes no run and one whose worker raises fail alone; the best recipe
    can be trained; MLflow has a parent, and under it every run with its point and its end."""
    space = {
        "layers": {"pairs": PAIRS, "images": 30},
        "optimizer.args": [{}, {"momentun": 1}],
        "optimizer.lr": [0.1, -1],
    }
    words = command("--concurrent", "2", space=space, stop={"rule": "asha", "reduction_factor": 2})
    assert main(words) == 1  # some have failed
    shown = capsys.readouterr().out
    found = trials(tmp_path / "out")
    ends = [found[f"{number:03d}-seed0"].end for number in range(8)]
    assert [ends[i] for i in (1, 3, 5, 7, 2, 6)] == ["failed"] * 6
    assert {ends[0], ends[4]} <= {"finished", "stopped"}
    assert "finished" in ends
    assert "greater than 0" in found["001-seed0"].reason
    assert "momentun" in found["002-seed0"].reason
    everything_is_free()
    check_files(tmp_path / "out" / "s", shown)
    check_mlflow(tmp_path / "out", found)
    again = [*words, "--plan"]
    assert main(again) == 0
    assert "8; 0 to be continued" in capsys.readouterr().out
    assert main(words) == 1  # nothing is left to do but what has failed, and the same comes out
    assert trials(tmp_path / "out") == found


def everything_is_free() -> None:
    """Soon after a sweep nothing of it holds a place on the cluster, whether it ended or was stopped."""
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


def check_files(folder: Path, shown: str) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"sweep.json", "best.yaml", "curves.png", "layers.png", "layers.json", "cache"} <= names
    assert "tune" not in names
    content = json.loads((folder / "sweep.json").read_text())
    assert len(content["points"]) == 8
    first = content["points"][0]
    assert first["whole"]
    assert first["mean"] == first["trials"][0]["curve"][-1]["held_out/top1"]
    assert f"{first['mean']:.2%}" in shown
    best = load_recipe(folder / "best.yaml")
    assert best.teacher.source == "cache"
    assert best.method[2].pairs[0].model_dump() == first["point"]["layers"][0]
    assert main(["train", str(folder / "best.yaml"), "train.max_steps=3"]) == 0


def check_mlflow(out: Path, found: dict[str, Trial]) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    parent = (out / "s" / "mlflow_run_id").read_text()
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(runs) == 8
    status = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
    for run in runs:
        trial = found[run.data.tags["sweep.trial"]]
        assert run.info.status == status[trial.end]
        decision = run.data.tags["sweep.decision"]
        assert decision == trial.end or (trial.end == "stopped" and "stopped by asha at epoch" in decision)
        assert run.data.tags.get("sweep.error", "") == (trial.reason if trial.end == "failed" else "")
        assert run.data.tags["sweep.point.optimizer.lr"] == ("0.1" if trial.point["optimizer.lr"] > 0 else "-1")
    assert client.get_run(parent).info.status == "FINISHED"
    names = {artifact.path for artifact in client.list_artifacts(parent)}
    assert {"space.yaml", "sweep.json", "best.yaml", "layers.png", "recipe.yaml"} <= names


@pytest.mark.ray
@pytest.mark.slow
def test_killed_and_restored(ray_cluster, folder, tmp_path, worker_executable):
    """The driver is killed while its first run trains, then a worker of the second: the same table as undisturbed,
    where runs train in their trials' processes, with the second one stopped in both. Its place is free soon after, also
    where the machine has a second cluster."""
    space = tmp_path / "space.yaml"
    stop = {"rule": "asha", "reduction_factor": 2, "grace_epochs": 10}
    content = {"name": "s", "space": {"optimizer.lr": [0.05, 1e-6]}, "stop": stop}
    space.write_text(yaml.safe_dump(content))
    outs = tmp_path / "undisturbed", tmp_path / "disturbed"
    command = ["sweep", str(folder / "recipe.yaml"), "--space", str(space), "--concurrent", "1", "train.epochs=16"]
    assert main([*command, f"output_dir={outs[0]}"]) == 0
    command += ["scaling.num_workers=1", f"output_dir={outs[1]}"]
    address = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    driver = Command(command, tmp_path / "output", worker_executable, address)
    wait_for(lambda: driver.poll() is not None or num_reports(outs[1], 0) >= 1)
    driver.kill()
    assert driver.returncode == -signal.SIGKILL, driver.said
    assert [trial.end for trial in trials(outs[1]).values()] == [None]

    def kill_a_worker() -> int:
        """How far the second run had come."""
        wait_for(lambda: num_reports(outs[1], 1) >= 1)
        os.kill(training_workers()[0], signal.SIGKILL)
        return num_reports(outs[1], 1)

    with another_cluster(), ThreadPoolExecutor(1) as thread:
        killed_at = thread.submit(kill_a_worker)
        assert main(command) == 0
        assert killed_at.result() < stop["grace_epochs"], "killed after its end"
        everything_is_free()
    assert not training_workers()
    undisturbed, disturbed = (trials(out) for out in outs)
    assert [trial.end for trial in undisturbed.values()] == ["finished", "stopped"]
    assert disturbed == undisturbed | {
        name: Trial(**{**vars(trial), "result": disturbed[name].result}) for name, trial in undisturbed.items()
    }
    for name, trial in undisturbed.items():
        ours, theirs = (t[name].result.get("metrics", {}).get("val/top1") for t in (disturbed, undisturbed))
        assert ours == theirs
        if trial.end == "finished":
            weights = [safetensors.torch.load_file(out / "s" / f"s-{name}" / "student.safetensors") for out in outs]
            assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@contextlib.contextmanager
def another_cluster() -> Iterator[None]:
    """A Ray cluster of somebody else's on this machine."""
    start = "from cluster.nodes.start import start_ray; start_ray(num_cpus=1, include_dashboard=False)"
    code = f"{start}; print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert "up" in process.stdout.readline()
        yield
        process.communicate("\n")


def wait_for(condition: Callable[[], Any], seconds: float = 200) -> None:
    """Looks ten times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def num_reports(out: Path, number: int) -> int:
    trial = trials(out).get(f"{number:03d}-seed0")
    return len(trial.reports) if trial else 0


def training_workers() -> list[int]:
    wanted = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
    return [actor.pid for actor in list_actors(ray.get_runtime_context().gcs_address, filters=wanted) if actor.pid]

"""The command: its plan; whole sweeps on a Ray cluster, also killed and restored; what is left in files and MLflow."""

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
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import ray
import safetensors.torch
import torch
import yaml
from ray.util.state import list_actors
from rich.console import Console

from cluster.recipe import load_recipe, validated
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import SweepJournal, Trial
from cluster.sweep.run import JOURNAL
from cluster.sweep.space import LayerScores, build_space
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.quality.score import Quality
from ops.__main__ import main
from ops.submit import submit
from ops.sweep.plots import plots
from ops.sweep.report import ends_of_runs, ranked, result_table
from tests.conftest import write_image_folder

ROOT = Path(__file__).parents[3]
PAIRS = [[{"student": "layer2", "teacher": "layer2"}], [{"student": "layer2", "teacher": "layer3"}]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a teacher and recipe.yaml: 4 epochs, a quarter of the images held out."""
    root = tmp_path_factory.mktemp("sweep")
    write_image_folder(root / "images", train=24)
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), root / "teacher.safetensors")
    recipe = {
        "name": "run",
        "output_dir": str(root / "out"),
        "data": {"root": str(root / "images"), "num_threads": 1, "held_out": 0.25, "loader": "reference"},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0]},
        "student": {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}},
        "teacher": {"model": "cifar_resnet8", "checkpoint": str(root / "teacher.safetensors")},
        "method": [
            {"term": "ce", "weight": 0.5},
            {"term": "kd", "weight": 0.5, "temperature": 4.0},
            {"term": "feature_mse", "weight": 0.1, "pairs": PAIRS[0]},
        ],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 4, "batch_size": 18, "micro_batch": 9},
        "scaling": {"num_workers": 0},
        "tracking": {"system_metrics": False, "every_steps": 3},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture
def command(folder, tmp_path) -> Callable[..., list[str]]:
    """A function that gives the words of a sweep into the test's own folder."""

    def words(*more: str, **space: Any) -> list[str]:
        (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "s"} | space))
        space_file, out = str(tmp_path / "space.yaml"), f"output_dir={tmp_path / 'out'}"
        return ["sweep", str(folder / "recipe.yaml"), "--space", space_file, *more, out]

    return words


def trials(out: Path) -> dict[str, Trial]:
    """What the journal of the sweep says."""
    path = out / "s" / JOURNAL
    if not path.exists():
        return {}
    copy = out / "copy.jsonl"  # reading mends the file, which belongs to a sweep that runs
    copy.write_bytes(path.read_bytes())
    journal = SweepJournal(copy)
    journal.open()
    return journal.trials


def test_the_plan(command, tmp_path, capsys):
    """Runs, cache with its size, hours, break-even: all of it without Ray, and nothing else is begun."""
    space = {"temperature": [1, 4], "layers": {"ranked": 2, "images": 30}, "optimizer.lr": [0.1, -1]}
    assert main(command("--plan", space=space, seeds=[0, 1], stop={"rule": "asha", "reduction_factor": 2})) == 0
    shown = capsys.readouterr().out
    for part in (
        "8 points (grid) x 2 seeds = 16",
        "held_out/top1 on 25% of the training images",
        "to be built",
        "4 views",
        "with the teacher online",
        "paid for",
        "optimizer.lr: Input should be greater than 0 (got -1)",
    ):
        assert part in shown, part
    assert not ray.is_initialized()
    assert sorted(path.name for path in (tmp_path / "out" / "s").iterdir() if path.is_file()) == [
        "layers.json",
        "speeds.json",
    ]


def test_options_before_and_after(command, capsys):
    """key=value may stand behind options; what is no key=value is refused."""
    with pytest.raises(SystemExit):
        main(command("--concurrent", "2", "nonsense", space={"weight": [1]}))
    assert "unrecognized arguments: nonsense" in capsys.readouterr().err


def imagined(tmp_path: Path, ends: dict[str, tuple[str, float]], **space: Any) -> tuple[Any, list[Trial]]:
    """A plan, as far as reports read it, and trials that ended as {run: (end, last score)} says, at epoch 2 or 4."""
    fields = {"name": "s", "space": space, "stop": {"rule": "asha"}, "seeds": [0, 1]}
    sweep = validated(SweepConfig, fields, "space.yaml")
    quality = {tap: Quality(q, 0.0, 1.0, samples=9, dims=4, effective_dims=2.0) for tap, q in QUALITY.items()}
    scores = LayerScores(quality, ["early", "late"])
    plan = SimpleNamespace(
        sweep=sweep,
        space=build_space(sweep, scores),
        scores=scores,
        parent=SimpleNamespace(run_dir=tmp_path),
        score=lambda trial: trial.score("held_out/top1", selects_best=False),
    )
    points, trials = plan.space.points(), []
    for name, (end, score) in ends.items():
        number, seed = int(name[:3]), int(name[-1])
        trial = Trial(name, number, points[number], seed, end=end, result={"metrics": {"val/top1": score - 0.01}})
        epochs = {"finished": (2, 4), "stopped": (2,), "failed": ()}[end]
        trial.reports = [{"epoch": epoch, "held_out/top1": score - (epoch < max(epochs)) * 0.1} for epoch in epochs]
        trials.append(trial)
    return plan, trials


QUALITY = {"a": 0.1, "b": 0.9, "c": 0.5}
ENDS = {
    "000-seed0": ("finished", 0.5),
    "000-seed1": ("finished", 0.7),
    "001-seed0": ("finished", 0.9),
    "001-seed1": ("stopped", 0.8),  # not to be compared with a mean of whole runs
    "002-seed0": ("finished", 0.6),
    "002-seed1": ("finished", 0.9),
    "003-seed0": ("failed", 0.0),
    "003-seed1": ("failed", 0.0),
}


def test_ranking(tmp_path):
    """Whole points by their means, then those with stopped runs, then those with nothing to show."""
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1])
    results = ranked(plan, trials)
    assert [result.number for result in results] == [2, 0, 1, 3]
    assert [result.mean for result in results] == [pytest.approx(0.75), pytest.approx(0.6), pytest.approx(0.85), None]
    assert results[0].stdev == pytest.approx(0.3 / 2**0.5)
    assert [ends_of_runs(result) for result in results] == [
        "2 finished",
        "2 finished",
        "1 finished, 1 stopped at 2",
        "2 failed at 0",
    ]
    shown = Console(width=120)
    with shown.capture() as capture:
        shown.print(result_table(plan, results))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines() if line.startswith("│")]
    assert lines[0] == ["1", "2", "1", "0.7500", "±", "0.2121", "74.00%", "2", "finished"]


def test_pictures(tmp_path):
    """Every kind that the space allows."""
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1], layers={"ranked": 1})
    made = plots(plan, ranked(plan, trials))
    assert [path.name for path in made] == ["curves.png", "response.png", "heat_temperature_weight.png", "layers.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_as_a_job(command, monkeypatch):
    """The space's file is looked for where the job finds the tree."""
    sent = []
    monkeypatch.setattr("ops.submit.submit_job", lambda address, words, *more: sent.append(words) or 0)
    words = command(space={"temperature": [1]})
    with pytest.raises(Refused, match=r"lies outside"):
        submit("http://head:8265", None, words)
    inside = "ops/recipes/demo/common.yaml"  # any file of the tree
    words = ["sweep", "kd", "--space", str(ROOT / inside), "data.root=/shared", "output_dir=/shared/out"]
    assert submit("http://head:8265", None, [*words, "teacher.checkpoint=/shared/t.safetensors"]) == 0
    assert sent[0][:7] == ["python", "-m", "ops", "sweep", "kd", "--space", inside]


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
    assert main(words) == 0
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
    assert main(words) == 0  # nothing is left to do, and the same comes out
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
    assert f"{first['mean']:.4f}" in shown
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
def test_killed_and_restored(ray_cluster, folder, tmp_path):
    """The driver is killed while its first run trains, then a worker of the second: the same table as undisturbed,
    where runs train in their trials' processes, with the second one stopped in both. Its place is free soon after, also
    where the machine has a second cluster."""
    space = tmp_path / "space.yaml"
    stop = {"rule": "asha", "reduction_factor": 2, "grace_epochs": 16}
    content = {"name": "s", "space": {"optimizer.lr": [0.05, 1e-6]}, "stop": stop}
    space.write_text(yaml.safe_dump(content))
    outs = tmp_path / "undisturbed", tmp_path / "disturbed"
    command = ["sweep", str(folder / "recipe.yaml"), "--space", str(space), "--concurrent", "1", "train.epochs=24"]
    assert main([*command, f"output_dir={outs[0]}"]) == 0
    command += ["scaling.num_workers=1", f"output_dir={outs[1]}"]
    with driver(command) as process:
        wait_for(lambda: process.poll() is not None or num_reports(outs[1], 0) >= 1)
        process.kill()
        shown = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, shown
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
    code = "import ray; ray.init('local', num_cpus=1, include_dashboard=False); print('up', flush=True); input()"
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


def driver(words: list[str]) -> subprocess.Popen:
    address = ray.get_runtime_context().gcs_address
    env = os.environ | {"RAY_ADDRESS": address}
    words = [sys.executable, "-m", "ops", *words]
    return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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

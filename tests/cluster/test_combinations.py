"""What each works alone, together on two nodes: caches, other libraries, the dashboard's runs, a sweep on Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
import safetensors.torch
import torch
import yaml
from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

from cluster.cache.job import build
from cluster.recipe.reading import load_recipe, parse
from cluster.sweep.journal import SweepJournal
from cluster.sweep.run import JOURNAL
from cluster.training import launch as launching
from cluster.training.launch import launch
from kdcore.configs import ModelConfig
from kdcore.errors import RunFailed
from kdcore.models import build_model
from tests.cluster.machines import NUM_CPUS, ROOT, Machines
from tests.cluster.runs import weights
from tests.conftest import small_recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cached(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """A function that gives a run of 12 steps from a cache of two views, as a mapping; with fields changed."""
    folder = tmp_path_factory.mktemp("cached")
    torch.manual_seed(7)
    teacher = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(teacher.state_dict(), folder / "teacher.safetensors")

    def make(**changes: Any) -> dict[str, Any]:
        own = {
            "teacher": {"model": "cifar_resnet8", "checkpoint": str(folder / "teacher.safetensors"), "source": "cache"},
            "cache": {"dir": str(folder / "cache"), "batch_size": 4, "rows_per_shard": 12},
            "views__num_views": 2,
            "data__loader": "reference",
            "data__held_out": 0.25,
            "method": [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}],
            "train": {"epochs": 2, "batch_size": 6, "micro_batch": 3},
        }
        return small_recipe(image_folder, folder / "out", **own | changes)

    return make


class Places:
    """Watches a run; knows on which nodes its workers were."""

    def __init__(self, nodes: Machines) -> None:
        self.nodes = nodes
        self.seen: set[str] = set()

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        if state.get("step", 0) and not self.seen:
            self.seen = {address for address, _ in self.nodes.workers()}


def test_a_cache_of_two_nodes_read_on_one_and_on_two(nodes, cached):
    """Two workers on one node, and one on each of two: the same weights, to the bit, and the same losses."""
    build(parse(cached(teacher__source="online", scaling={"num_workers": 2})))
    results = []
    for name, cpus in (("one", 1), ("two", NUM_CPUS)):
        places = Places(nodes)
        scaling = {"num_workers": 2, "cpus_per_worker": cpus}
        results.append(launch(parse(cached(name=name, scaling=scaling)), watch=places))
        assert len(places.seen) == {"one": 1, "two": 2}[name]
    first, second = (weights(result) for result in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert results[0].metrics["train/loss"] == results[1].metrics["train/loss"]


def runs_of_the_dashboard() -> set[str]:
    """The names on Ray's page of training runs; with the token, where Ray wants one."""
    url = f"http://{ray._private.worker.get_dashboard_url()}/api/train/v2/runs/v1"
    request = urllib.request.Request(url, headers=get_auth_headers_if_auth_enabled({}))
    with urllib.request.urlopen(request, timeout=120) as answer:
        return {run["name"] for run in json.loads(answer.read())["train_runs"]}


def test_a_node_of_other_libraries(nodes, cached, monkeypatch):
    """Its name, both versions, and the DALI that it lacks, in the line that ends the run, which Ray's page has."""
    theirs = launching.node_versions() | {"timm": "1.0.3", "nvidia-dali-cuda120": "1.9"}
    monkeypatch.setattr(launching, "node_versions", lambda with_dali: theirs)
    said = r"^rank \d: the node \S+ has other libraries than the driver: timm [\d.]+ \(driver: 1.0.3\)"
    said += r", nvidia-dali-cuda120 is absent \(driver: 1.9\); give every node the same environment"
    with pytest.raises(RunFailed, match=said):
        launch(parse(cached(name="others", teacher__source="online", scaling={"num_workers": 1})))
    assert "others" in runs_of_the_dashboard()


@pytest.mark.long
def test_a_sweep_is_interrupted_and_loses_a_worker(nodes, cached, tmp_path):
    """Ctrl-C while a worker on each node trains: exit status 130. The same command goes on; a worker is killed: `lost`,
    with its cause, and exit status 1. The same command once more ends it; the best recipe trains."""
    scaling = {"num_workers": 2, "cpus_per_worker": NUM_CPUS, "max_failures": 0}
    recipe = cached(teacher__source="online", scaling=scaling) | {"output_dir": str(tmp_path / "out")}
    recipe["train"] |= {"epochs": 60}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"name": "s", "space": {"temperature": [4.0]}}))
    command = [sys.executable, "-m", "ops", "sweep", str(tmp_path / "recipe.yaml"), "--space"]
    command += [str(tmp_path / "space.yaml"), "--concurrent", "1"]
    journal = tmp_path / "out" / "s" / JOURNAL

    def sweep(blow: Callable[[subprocess.Popen[str]], Any]) -> tuple[int, str]:
        """Exit status and output of the command, which is struck once it has reported a validation."""
        before = num_reports(journal)
        options: dict[str, Any] = {"cwd": ROOT, "env": os.environ | {"RAY_ADDRESS": nodes.address}, "text": True}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
            while process.poll() is None and num_reports(journal) == before:
                time.sleep(0.1)
            blow(process)
            shown = process.communicate()[0]
        return process.returncode, shown

    places = set[str]()

    def interrupt(process: subprocess.Popen[str]) -> None:
        places.update(address for address, _ in nodes.workers())
        process.send_signal(signal.SIGINT)

    status, shown = sweep(interrupt)
    assert status == 130, shown
    assert len(places) == 2
    status, shown = sweep(lambda process: nodes.kill_workers(1))
    assert status == 1, shown
    assert "1 to be continued" in shown
    said = r"000-seed0 lost: rank \d on \S+: the worker's process was killed without a message"
    assert re.search(said, " ".join(shown.split())), shown
    status, shown = sweep(lambda process: None)
    assert status == 0, shown
    past = SweepJournal(journal)
    past.open()
    (trial,) = past.trials.values()
    assert trial.end == "finished"
    assert [row["epoch"] for row in trial.reports] == list(range(1, 61)), "each reported once"
    best = load_recipe(tmp_path / "out" / "s" / "best.yaml", ["train.max_steps=2", "name=best"])
    assert launch(best).steps == 2


def num_reports(journal: Path) -> int:
    return journal.read_text().count('"report"') if journal.exists() else 0

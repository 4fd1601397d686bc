"""The driver of a run's workers: what its process holds, and what Ray Train is asked for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.recipe.reading import parse
from cluster.training import fitting
from cluster.training.fitting import Job, set_up_ray_train
from cluster.training.worker_task import WorkerTask
from kdcore.errors import Refused
from pipelines.leases import Fence

NAMES = ("RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR", "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S")
TRACKING = "RAY_TRAIN_ENABLE_STATE_TRACKING"
TASK = WorkerTask({}, {}, {}, None, Fence("", "", 0), watches_nodes=False)


def test_it_imports_neither_torch_nor_mlflow():
    """A sweep has such processes for every run at a time: 280 MB each for torch alone."""
    names = "[name for name in ('torch', 'timm', 'mlflow') if name in sys.modules]"
    code = f"import cluster.sweep.trial, cluster.sweep.manager, sys; print({names})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def job(**each: float) -> Job:
    return Job("run", "/out/run", "/out", 2, each, 2, None, 2, 60.0, 60.0, 60.0, TASK)


@pytest.fixture
def environment(monkeypatch) -> pytest.MonkeyPatch:
    """The environment without Ray Train's settings, which is put back; a cluster of one node."""
    for name in (*NAMES, TRACKING, "RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(fitting.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(fitting.ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    return monkeypatch


def test_hangs_are_watched_for_on_gpus(environment):
    """And named before the process group gives up waiting; who has turned it off keeps it off."""
    set_up_ray_train(job(CPU=1.0))
    assert not any(name in os.environ for name in NAMES)
    set_up_ray_train(job(CPU=1.0, GPU=1.0))
    assert [os.environ[name] for name in NAMES] == ["1", "30.0"]
    environment.setenv(NAMES[0], "0")
    set_up_ray_train(job(GPU=1.0))
    assert os.environ[NAMES[0]] == "0"


def test_the_dashboard_has_the_runs_of_a_cluster(environment):
    set_up_ray_train(job(CPU=1.0))
    assert TRACKING not in os.environ, "nobody looks at it where one machine trains for itself"
    environment.setattr(fitting.ray, "nodes", lambda: [{"Alive": True}] * 2)
    environment.setattr(fitting.ray, "is_initialized", lambda: False)
    set_up_ray_train(job(CPU=1.0))
    assert TRACKING not in os.environ, "a run in this very process starts no Ray"
    environment.setattr(fitting.ray, "is_initialized", lambda: True)
    set_up_ray_train(job(CPU=1.0))
    assert os.environ[TRACKING] == "1"


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"gpus_per_worker": 2}, "gpus_per_worker 2: a worker computes on one GPU; take 1, and more num_workers"),
        ({"gpus_per_worker": 0.5, "num_workers": 2}, "would put 2 workers of a run on one GPU, which NCCL refuses"),
    ],
)
def test_parts_of_a_gpu(recipe, scaling, said):
    """One worker may take a part, so that runs share a GPU; several of one run may not, for NCCL would refuse them."""
    with pytest.raises(Refused, match=said):
        parse(recipe(scaling=scaling))
    assert parse(recipe(scaling={"gpus_per_worker": 0.5, "num_workers": 1})).scaling.gpus_per_worker == 0.5
    parse(recipe(scaling={"gpus_per_worker": 0.5, "num_workers": 2, "use_gpu": False}))

"""One rule says where things run; it is the same for training, caches, evaluation and a look at the layers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch

from cluster.nodes import resources
from cluster.nodes.resources import Gpus, device_here, enter_ray, run_resources, uses_gpu
from cluster.nodes.start import on_this_node
from cluster.recipe.reading import parse
from kdcore.errors import Refused
from kdcore.remarks import warn_once

MACHINE, CLUSTER, SHARED = (False, False), (True, False), (True, True)
EVERYWHERE = (MACHINE, CLUSTER, SHARED)
# (where, GPUs, GPUs to come, workers, fewest workers, use_gpu) -> on GPUs? A text: refused with it.
RULE = [
    (EVERYWHERE, 0, 0, 0, None, None, False),
    (EVERYWHERE, 1, 0, 0, None, None, True),
    (EVERYWHERE, 1, 0, 1, None, None, True),
    (EVERYWHERE, 1, 0, 2, 1, None, True),
    (EVERYWHERE, 4, 0, 4, None, None, True),
    (EVERYWHERE, 4, 0, 4, None, False, False),
    (EVERYWHERE, 1, 0, 2, None, True, True),
    ((MACHINE, CLUSTER), 1, 0, 2, None, None, False),
    ((SHARED,), 1, 0, 2, None, None, "workers take 2 GPUs and the cluster has 1 at most"),
    # An autoscaler: the answer is the same whatever is there at the moment.
    ((SHARED,), 0, 8, 2, None, None, True),
    ((SHARED,), 8, 8, 2, None, None, True),
    ((SHARED,), 0, 2, 4, None, None, "take 4 GPUs and the cluster has 2 at most"),
    ((SHARED,), 0, None, 1, None, None, "add scaling.use_gpu=true, which waits for them, or scaling.use_gpu=false"),
    ((SHARED,), 0, None, 1, None, True, True),
    ((SHARED,), 0, None, 1, None, False, False),
]


@pytest.mark.parametrize(("where", "gpus", "to_come", "workers", "fewest", "asked", "answer"), RULE)
def test_the_rule(where, gpus, to_come, workers, fewest, asked, answer, recipe, monkeypatch):
    scaling = {"num_workers": workers, "use_gpu": asked} | ({"min_workers": fewest} if fewest else {})
    config = parse(recipe(scaling=scaling, train__micro_batch=2))
    for flags in where:
        monkeypatch.setattr(resources, "gpus_in_reach", lambda flags=flags: Gpus(gpus, to_come, *flags))
        if isinstance(answer, str):
            with pytest.raises(Refused, match=re.escape(answer)):
                uses_gpu(config)
            continue
        assert uses_gpu(config) == answer
        assert device_here(config).type == ("cuda" if answer else "cpu")
        assert run_resources(config) == {"CPU": max(1, workers), "GPU": answer * max(1, workers)}


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (Gpus(1, 0, True, False), "on the CPU: the workers take 2 GPUs, and 1 are there"),
        (Gpus(0, 0, True, True), "on the CPU: no node of the cluster has a GPU"),
        (Gpus(0), "on the CPU: this machine has NVIDIA's driver, but PyTorch sees no GPU"),
    ],
)
def test_falling_back_to_the_cpu_is_said(gpus, said, recipe, monkeypatch, caplog, tmp_path):
    warn_once.cache_clear()
    monkeypatch.setattr(resources, "gpus_in_reach", lambda: gpus)
    monkeypatch.setattr(resources, "NVIDIA_DRIVER", tmp_path)
    assert not uses_gpu(parse(recipe(scaling={"num_workers": 2})))
    assert said in caplog.text


def test_a_gpu_that_is_asked_for_and_absent_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=r"scaling.use_gpu is true, but PyTorch sees no GPU"):
        uses_gpu(parse(recipe(scaling={"num_workers": 0, "use_gpu": True})))
    monkeypatch.setattr(resources, "gpus_in_reach", lambda: Gpus(0, 0, True))  # a cluster may grow one
    assert uses_gpu(parse(recipe(scaling={"num_workers": 1, "use_gpu": True})))


def test_nobody_else_asks_for_the_device():
    """The question is put to PyTorch in one module; `doctor` and what runs on GPUs alone ask for themselves."""
    root = Path(resources.__file__).parents[2]
    asking = {
        path.relative_to(root).as_posix()
        for package in ("cluster", "ops")
        for path in (root / package).rglob("*.py")
        if "cuda.is_available" in path.read_text() or "get_gpu_ids" in path.read_text()
    }
    doctor = {"ops/doctor/probes.py", "ops/doctor/decoders.py"}
    assert asking == {"cluster/nodes/resources.py", *doctor, "ops/reproduce/cifar100.py", "ops/benchmarks/gpu.py"}


def test_a_ray_of_this_machine_has_cores_for_workers_that_share_them(recipe, monkeypatch):
    """Three workers of 0.7 cores take 2.1: with 2, the last one would be waited for without end."""
    started = {}
    monkeypatch.setattr(resources, "start_ray", lambda **options: started.update(options))
    monkeypatch.setattr(resources.os, "cpu_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    enter_ray(parse(recipe(train__batch_size=12, scaling__num_workers=3, scaling__cpus_per_worker=0.7)))
    assert started["num_cpus"] == 3


@pytest.mark.parametrize("stops_runs", [False, True])
def test_what_stops_runs_here_has_the_dashboard_that_frees_their_places(recipe, monkeypatch, stops_runs):
    started = {}
    monkeypatch.setattr(resources, "start_ray", lambda **options: started.update(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    enter_ray(parse(recipe(scaling__num_workers=1)), stops_runs=stops_runs)
    assert started["include_dashboard"] is stops_runs


def test_an_actor_without_resources_stays_on_its_node(monkeypatch):
    """Ray puts it on any node unless its affinity is hard."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "ab" * 28))
    strategy = on_this_node()
    assert strategy.node_id == "ab" * 28
    assert not strategy.soft

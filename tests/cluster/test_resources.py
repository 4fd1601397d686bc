"""One rule says where things run; it is the same for training, caches, evaluation and a look at the layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cluster import resources
from cluster.recipe import parse
from cluster.resources import device_here, run_resources, uses_gpu
from kdcore.errors import Refused

# (GPUs, workers, fewest workers, use_gpu) -> on GPUs?
RULE = [
    (0, 0, None, None, False),
    (1, 0, None, None, True),
    (1, 1, None, None, True),
    (1, 2, None, None, False),
    (1, 2, 1, None, True),
    (4, 4, None, None, True),
    (4, 4, None, False, False),
    (1, 2, None, True, True),
]


@pytest.mark.parametrize("is_cluster", [False, True])
@pytest.mark.parametrize(("gpus", "workers", "fewest", "asked", "answer"), RULE)
def test_the_rule(gpus, workers, fewest, asked, answer, is_cluster, recipe, monkeypatch):
    scaling = {"num_workers": workers, "use_gpu": asked} | ({"min_workers": fewest} if fewest else {})
    config = parse(recipe(scaling=scaling, train__micro_batch=2))
    monkeypatch.setattr(resources, "gpus_present", lambda: (is_cluster, gpus))
    assert uses_gpu(config) == answer
    assert device_here(config).type == ("cuda" if answer else "cpu")
    assert run_resources(config) == {"CPU": max(1, workers), "GPU": answer * max(1, workers)}


def test_a_gpu_that_is_asked_for_and_absent_is_refused(recipe, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Refused, match=r"scaling.use_gpu is true, but PyTorch sees no GPU"):
        uses_gpu(parse(recipe(scaling={"num_workers": 0, "use_gpu": True})))
    monkeypatch.setattr(resources, "gpus_present", lambda: (True, 0))  # a cluster may grow one
    assert uses_gpu(parse(recipe(scaling={"num_workers": 1, "use_gpu": True})))


def test_nobody_else_asks_for_the_device():
    """The question is put to PyTorch in one module; `doctor` and the GPU runner's default ask for themselves."""
    root = Path(resources.__file__).parents[1]
    asking = {
        path.relative_to(root).as_posix()
        for package in ("cluster", "ops")
        for path in (root / package).rglob("*.py")
        if "cuda.is_available" in path.read_text() or "get_gpu_ids" in path.read_text()
    }
    assert asking == {"cluster/resources.py", "ops/probes.py", "ops/reproduce/cifar100.py"}

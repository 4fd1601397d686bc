"""What a network costs is told of images of the size at which it is deployed, not of those that it was trained on."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

import ops.export.latency
from cluster.images import deployed_size
from cluster.teachers.running import SINGLE, RunTeachers
from cluster.training.costs import run_costs
from kdcore.cost import multiply_adds
from tests.ops.conftest import METHODS, small_run


@pytest.fixture
def config(tmp_path):
    """Trained at 32 pixels and deployed at 48, with a teacher that sees 64."""
    made = small_run(tmp_path, "run", METHODS["kd"], 0)
    data = made.data.model_copy(update={"evaluation_size": 48})
    return made.model_copy(update={"data": data, "teacher": made.teacher.model_copy(update={"image_size": 64})})


def test_the_costs_of_a_run(config):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    rank, batches = SimpleNamespace(world_size=1), SimpleNamespace(num_until=lambda step: 0)
    run = SimpleNamespace(config=config, rank=rank, batches=batches, teachers=RunTeachers())
    state = SimpleNamespace(train_seconds=1.0, step=0, evaluated=network)
    costs = run_costs(run, state, print)
    assert deployed_size(config) == (48, 48)
    assert costs["model/gmacs"] == multiply_adds(network, (48, 48)) / 1e9


def test_each_network_is_timed_at_its_own_size(config, monkeypatch):
    student, teacher = nn.Identity(), nn.Identity()
    single = SimpleNamespace(model=teacher)
    teachers = SimpleNamespace(online={SINGLE: single}, single=single)
    parts = SimpleNamespace(config=config, teachers=teachers, for_teacher=SimpleNamespace(config=config.for_teacher))
    monkeypatch.setattr(ops.export.latency, "assemble", lambda *_: parts)
    monkeypatch.setattr(ops.export.latency, "load_student", lambda *_: student)
    sizes = {}
    monkeypatch.setattr(ops.export.latency, "subjects_of", lambda name, *more: sizes.update({name: more[3]}) or [])
    ops.export.latency.measure_networks(config, Path("none"), [1], ["torch"], 0.0)
    assert sizes == {"student": (48, 48), "teacher": (64, 64)}

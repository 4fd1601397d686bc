"""What a run says of its costs: its teacher's size, too, where that answers from a cache."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.running import RunTeachers
from cluster.training.costs import run_costs, teacher_size
from cluster.training.loop import new_state
from kdcore.configs import ModelConfig
from kdcore.models import build_model

CPU = torch.device("cpu")
KD = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]


@pytest.fixture
def weights(tmp_path):
    """The file of a teacher of five classes."""
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c", "d", "e"))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    (tmp_path / "classes.json").write_text(json.dumps({"class0": 0, "class1": 2, "class2": 4}))
    return tmp_path / "teacher.safetensors"


def test_a_cached_teacher_is_as_large_as_online(recipe, weights, tmp_path):
    """Its number was missing, and with it the ratio on the review's page."""
    teacher = {
        "model": "cifar_resnet8",
        "checkpoint": str(weights),
        "class_indices": str(tmp_path / "classes.json"),
        "args": {"num_classes": 5},
    }
    fields = {
        "method": KD,
        "views__num_views": 1,
        "cache": {"dir": str(tmp_path / "cache"), "batch_size": 4},
        "scaling__num_workers": 0,
    }
    build(parse(recipe(teacher=teacher, **fields)))
    told: list[str] = []
    found = []
    for source in ("online", "cache"):
        run = assemble(parse(recipe(teacher=teacher | {"source": source}, **fields)), Rank(0, 1, CPU))
        found.append(run_costs(run, new_state(run), told.append))
    assert found[0]["model/teacher_parameters"] == found[1]["model/teacher_parameters"] > 1000
    assert found[1].keys() - found[0].keys() == {"data/cache_bytes"}
    assert not told


def test_what_cannot_be_known_is_left_out_with_a_line(recipe, tmp_path):
    teacher = {"model": f"local-dir:{tmp_path / 'gone'}", "source": "cache"}
    config = parse(recipe(method=KD, teacher=teacher, views__num_views=1, cache={"dir": str(tmp_path / "cache")}))
    told: list[str] = []
    run = SimpleNamespace(config=config, teachers=RunTeachers(), classes=("a", "b", "c"))
    assert teacher_size(run, told.append) == {}
    assert told[0].startswith("the cached teacher's number of parameters is left out (Refused: ")


def test_without_a_teacher_there_is_none(recipe):
    run = SimpleNamespace(config=parse(recipe()), teachers=RunTeachers(), classes=("a", "b", "c"))
    assert teacher_size(run, print) == {}

"""Sweeps of a small recipe, shared by the tests of sweeps."""

from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse, validated
from cluster.sweep.config import SweepConfig
from cluster.sweep.plan import SweepPlan
from cluster.sweep.space import LayerScores
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from kdcore.quality.score import Quality

KD = [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}]
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
MSE = {"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}


def sweep(**fields: Any) -> SweepConfig:
    """Return a sweep over two temperatures, with fields changed."""
    return validated(SweepConfig, {"name": "s", "space": {"temperature": [1, 4]}} | fields, "space.yaml")


@pytest.fixture
def recipes(recipe, tmp_path):
    """Return a function that gives a recipe with a teacher and held-out images, with fields changed."""
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "teacher.safetensors")
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.safetensors")}

    def make(**changes: Any) -> RunConfig:
        own = {"teacher": teacher, "method": KD, "data__held_out": 0.25, "data__loader": "reference"}
        return parse(recipe(**own | {"train__epochs": 9, "scaling__num_workers": 0} | changes))

    return make


def scores(**q: float) -> LayerScores:
    """Return layers whose Q is as given: S alone."""
    quality = {tap: Quality(value, 0.0, 1.0, samples=9, dims=4, effective_dims=2.0) for tap, value in q.items()}
    return LayerScores(quality, ["early", "late"])


def planned(recipe: RunConfig, layer_scores: LayerScores | None = None, **fields: Any) -> SweepPlan:
    """Return the plan of `sweep` with fields changed."""
    return SweepPlan(recipe, sweep(**fields), layer_scores)

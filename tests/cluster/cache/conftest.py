"""A teacher, and recipes that build its cache or read it."""

from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from tests.cluster.cache.cached import KD


@pytest.fixture
def teacher(tmp_path) -> dict[str, Any]:
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    with torch.no_grad():
        model.get_classifier().weight.mul_(8)  # answers that differ from picture to picture
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return {"model": "cifar_resnet8", "checkpoint": str(path)}


@pytest.fixture
def recipes(recipe, teacher, tmp_path) -> Callable[..., RunConfig]:
    """A function that gives a recipe with a cache: what it builds, or with cached=True what reads it."""

    def make(cached: bool = False, **changes: Any) -> RunConfig:
        own = {
            "teacher": teacher | {"source": "cache" if cached else "online"},
            "views__num_views": 2,
            "cache": {"dir": str(tmp_path / "cache"), "batch_size": 4, "rows_per_shard": 20},
            "scaling__num_workers": 0,
            "method": KD,
        }
        return parse(recipe(**own | changes))

    return make

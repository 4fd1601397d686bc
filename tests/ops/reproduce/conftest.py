"""Small runs side by side: their pictures, their teacher and their recipes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from cluster.recipe.reading import parse
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from tests.ops.reproduce.small_lanes import METHODS, NETWORK


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 training and 6 validation pictures of 16 x 16, of 2 classes."""
    root, rng = tmp_path_factory.mktemp("sixteen"), np.random.default_rng(0)
    for split, count in (("train", 11), ("val", 3)):
        for label in range(2):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 160, (16, 16, 3)) + 90 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    safetensors.torch.save_file(build_model(ModelConfig(**NETWORK), ("a", "b")).state_dict(), path)
    return str(path)


@pytest.fixture
def config(recipe, data, teacher):
    def make(row: str, name: str, **changes):
        """row: its method is the one of that name, unless the changes bring another."""
        student = {"classifier": "reused", "factor": 2} if row == "simkd" else {}
        return parse(
            recipe(
                name=name,
                data__root=str(data),
                views={"size": 16, "crop": "padded", "padding": 3},
                student=NETWORK | student,
                optimizer={"opt": "momentum", "lr": 0.05, "weight_decay": 5e-4, "decay_all": True},
                schedule={"sched": "multistep", "milestones": [2]},
                train={"epochs": 3, "batch_size": 4, "precision": "float32"},
                scaling__num_workers=0,
                **({"teacher": NETWORK | {"checkpoint": teacher}, "method": METHODS.get(row)} | changes),
            )
        )

    return make

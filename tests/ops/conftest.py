"""Finished runs of three recipes, shared by the tests that look back on runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.mlflow_tracker import tracking_uri
from tests.conftest import write_image_folder

CE = {"term": "ce", "weight": 1.0}
METHODS = {
    "alone": [CE],
    "kd": [CE, {"term": "kd", "weight": 1.0, "temperature": 4.0}],
    "features": [CE, {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": "layer1", "teacher": "layer2"}]}],
}


def small_run(folder: Path, name: str, method: list[dict[str, Any]], seed: int, **more: Any) -> RunConfig:
    """A run of 6 steps of timm's smallest ResNet on 48 images, in this process."""
    return parse(
        {
            "name": name,
            "output_dir": str(folder / "out"),
            "seed": seed,
            "data": {"root": str(folder / "images"), "num_threads": 1},
            "views": {"size": 32, "crop": "resized"},
            "student": {"model": "test_resnet"},
            "teacher": {"model": "cifar_resnet8", "checkpoint": str(folder / "teacher.safetensors")},
            "method": method,
            "optimizer": {"opt": "sgd", "lr": 0.05},
            "train": {"epochs": 2, "batch_size": 16, **more.pop("train", {})},
            "scaling": {"num_workers": 0},
            "tracking": {"system_metrics": False, "every_steps": 1, "experiment": "small"},
            **more,
        }
    )


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a teacher, and the finished runs out/<method>-<seed>, 3 seeds each; 120 validation images.

    One more, out/kd-large-batch, differs from the others in more than its method.
    """
    from cluster.training.launch import launch  # other tests here run on machines without Ray
    from kdcore.configs import ModelConfig
    from kdcore.models import build_model

    folder = tmp_path_factory.mktemp("finished")
    write_image_folder(folder / "images", train=16, val=40)
    torch.manual_seed(7)
    teacher = build_model(ModelConfig(model="cifar_resnet8"), ("class0", "class1", "class2"))
    safetensors.torch.save_file(teacher.state_dict(), folder / "teacher.safetensors")
    for method, terms in METHODS.items():
        for seed in range(3):
            launch(small_run(folder, f"{method}-{seed}", terms, seed), command=f"python -m ops train {method}")
    launch(small_run(folder, "kd-large-batch", METHODS["kd"], 0, train={"batch_size": 24}))
    return folder


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an exported kd-0, which tests add to but do not change."""
    from ops.__main__ import main

    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", str(finished / "out" / "kd-0"), "-o", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def store(finished: Path) -> str:
    """The URI of their MLflow store."""
    return tracking_uri(small_run(finished, "alone-0", METHODS["alone"], 0))

"""Numbers at their edges: a run with each is finite to its end, or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from cluster.recipe.reading import parse
from cluster.training.launch import RunResult, launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from tests.conftest import small_recipe, write_image_folder

STUDENT = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
LAYER = {"student": "layer2", "teacher": "layer2"}


def kd(temperature: float, weight: float = 1.0, term: str = "kd") -> list[dict[str, Any]]:
    own = {"non_target_weight": 2.0} if term == "dkd" else {}
    return [{"term": term, "weight": weight, "temperature": temperature, **own}]


def train(root: Path, tmp_path: Path, method: list[dict[str, Any]], **changes: Any) -> RunResult:
    """Two steps and more, of a teacher of random weights that stay the same."""
    changes = {"scaling": {"num_workers": 0}, "train": {"epochs": 1, "batch_size": 8, "max_steps": 3}} | changes
    recipe = small_recipe(root, tmp_path / "out", **changes) | {"method": method}
    recipe.setdefault("teacher", {"model": "cifar_resnet8", "random": True})
    return launch(parse(recipe))


def is_finite(result: RunResult) -> bool:
    weights = safetensors.torch.load_file(Path(result.run_dir) / "student.safetensors")
    numbers = [tensor.isfinite().all() for tensor in weights.values() if tensor.is_floating_point()]
    return all(numbers) and all(math.isfinite(value) for value in result.metrics.values())


@pytest.mark.parametrize("temperature", [1e-3, 1e3])
@pytest.mark.parametrize("term", ["kd", "dkd"])
def test_temperatures(image_folder: Path, tmp_path: Path, term: str, temperature: float) -> None:
    result = train(image_folder, tmp_path, kd(temperature, term=term), optimizer={"opt": "sgd", "lr": 1e-4})
    assert is_finite(result)
    assert result.steps == 3


def test_batches_of_one_image(image_folder: Path, tmp_path: Path) -> None:
    """Of batch norm, one image of one pixel a channel is what it cannot take: this network has more."""
    method = [*kd(4.0), {"term": "feature_mse", "weight": 1.0, "pairs": [LAYER]}]
    result = train(image_folder, tmp_path, method, train={"epochs": 1, "batch_size": 1, "max_steps": 3})
    assert is_finite(result)


def test_two_classes(tmp_path: Path) -> None:
    two = write_image_folder(tmp_path / "two", classes=2)
    assert is_finite(train(two, tmp_path, [*kd(4.0), *kd(4.0, term="dkd")]))


def test_one_class_is_refused(tmp_path: Path) -> None:
    one = write_image_folder(tmp_path / "one", classes=1)
    with pytest.raises(Refused, match=r"has one class, 'class0': .* give images of at least two"):
        train(one, tmp_path, kd(4.0))


def test_a_weight_of_zero_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    ce = {"term": "ce", "weight": 1.0}
    alone = train(image_folder, tmp_path, [ce], name="alone")
    beside = train(image_folder, tmp_path, [ce, *kd(4.0, weight=0.0)], name="beside")
    first, second = (safetensors.torch.load_file(Path(one.run_dir) / "student.safetensors") for one in (alone, beside))
    assert all(tensor.equal(second[name]) for name, tensor in first.items())


def test_no_weight_at_all_is_refused(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises((Refused, ValueError), match="weight"):
        train(image_folder, tmp_path, kd(4.0, weight=0.0))


@pytest.mark.parametrize("term", ["kd", "dkd"])
def test_a_student_that_is_its_teacher(image_folder: Path, tmp_path: Path, term: str) -> None:
    """The same file for both: the loss of the first step is what batch norm's own statistics leave of it."""
    file = tmp_path / "weights.safetensors"
    network = build_model(ModelConfig(**STUDENT), ("class0", "class1", "class2"))
    safetensors.torch.save_file(network.state_dict(), file)
    same = STUDENT | {"checkpoint": str(file)}
    result = train(image_folder, tmp_path, kd(4.0, term=term), student=same, teacher=same, optimizer__lr=1e-6)
    assert is_finite(result)
    assert result.metrics["val/agreement"] > 0.5

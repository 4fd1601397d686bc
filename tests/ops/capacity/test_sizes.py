"""Bytes of training states against counts of parameters."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors.torch

from cluster.recipe.reading import parse
from kdcore.configs import ModelConfig
from kdcore.models import build_model, count_parameters
from ops.capacity.sizes import Sizes, measure_sizes

TEACHER = {"model": "cifar_resnet8", "args": {"widths": [8, 8, 16, 32]}}
STUDENT = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}}
CLASSES = tuple("0123456789")
KD = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": 4.0}]


def sizes_of(**changes: Any) -> Sizes:
    recipe: dict[str, Any] = {
        "name": "run",
        "data": {"root": "nowhere"},
        "views": {"size": 32, "crop": "resized", "num_views": 2},
        "student": STUDENT,
        "teacher": {**TEACHER, "pretrained": True},
        "method": KD,
        "optimizer": {"opt": "sgd", "lr": 0.1},
        "train": {"epochs": 2, "batch_size": 32, "micro_batch": 8},
        "scaling": {"num_workers": 4},
    }
    return measure_sizes(parse(recipe | changes), 100, 10)


def network(config: dict[str, Any]) -> Any:
    return build_model(ModelConfig(**config), CLASSES)


def state_bytes(config: dict[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in network(config).state_dict().values())


def test_sgd_keeps_one_number_a_parameter():
    found, parameters = sizes_of(), count_parameters(network(STUDENT))
    assert found.trained_parameters == parameters
    assert found.gradient_bytes == found.optimizer_bytes == 4 * parameters
    assert found.weights_bytes == state_bytes(STUDENT)
    assert found.teacher_bytes == state_bytes(TEACHER)
    assert (found.ema_bytes, found.cached_bytes) == (0, 0)


def test_adamw_keeps_two_and_the_moving_average_a_network():
    train = {"epochs": 2, "batch_size": 32, "micro_batch": 8, "ema_decay": 0.9}
    found = sizes_of(optimizer={"opt": "adamw", "lr": 0.001}, train=train)
    tensors = len(list(network(STUDENT).parameters()))
    assert found.optimizer_bytes == 2 * found.gradient_bytes + 4 * tensors, "and a count of its steps of each tensor"
    assert found.ema_bytes == state_bytes(STUDENT)
    file = found.weights_bytes + found.optimizer_bytes + found.ema_bytes + state_bytes(STUDENT)
    assert file < found.checkpoint_bytes < file + 100_000, "some hundred bytes of each tensor's name and place"


def test_a_folders_network_counts_as_its_architecture(tmp_path):
    """Its classes are not those of the images that are not here, and were compared with them."""
    safetensors.torch.save_file(network(STUDENT).state_dict(), tmp_path / "model.safetensors")
    facts = {"architecture": STUDENT["model"], "model_args": STUDENT["args"], "label_names": list("abcdefghij")}
    (tmp_path / "config.json").write_text(json.dumps(facts | {"num_classes": 10}))
    assert sizes_of(student={"model": f"local-dir:{tmp_path}"}).weights_bytes == state_bytes(STUDENT)


def test_what_is_trained_beside_the_student_counts():
    pairs = [{"student": "layer3", "teacher": "layer3"}]
    found = sizes_of(method=[{"term": "feature_mse", "weight": 1.0, "pairs": pairs}])
    assert found.trained_parameters > count_parameters(network(STUDENT))


def test_a_cached_teacher_is_bytes_to_read_and_none_of_memory():
    found = sizes_of(teacher={**TEACHER, "source": "cache"}, cache={"dir": "nowhere"})
    assert found.teacher_bytes == 0
    assert found.cached_bytes == 10 * 2, "ten logits in float16"


def test_of_several_teachers_each_is_read_or_held():
    teachers = [
        {"name": "held", **TEACHER, "pretrained": True},
        {"name": "read", **STUDENT, "source": "cache"},
    ]
    found = sizes_of(teacher=None, teachers=teachers, cache={"dir": "nowhere"})
    assert found.teacher_bytes == state_bytes(TEACHER)
    assert found.cached_bytes == 10 * 2


def test_activations_grow_with_the_micro_batch():
    small = sizes_of()
    large = sizes_of(train={"epochs": 2, "batch_size": 64, "micro_batch": 16})
    assert large.activation_bytes == 2 * small.activation_bytes
    first_map = 8 * 4 * 32 * 32 * 4  # the first convolution's output for the micro-batch, which batch norm keeps
    assert small.activation_bytes > 3 * first_map


@pytest.mark.parametrize("sampling", ["classes", "images"])
def test_images_need_not_be_here(sampling):
    assert sizes_of(data={"root": "nowhere", "sampling": sampling}).memory_bytes > 0

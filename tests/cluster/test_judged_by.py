"""A student's answers mean something only where its classifier knows the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from cluster.assembly import assemble
from cluster.probing import classifier_knows_classes
from cluster.rank import Rank
from cluster.recipe.reading import parse
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import brings_classifier, build_model

PAIRS = [{"student": "layer1", "teacher": "layer1"}]
FEATURES = {"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}
CE = {"term": "ce", "weight": 1.0}


@pytest.mark.parametrize(
    ("method", "knows"),
    [
        ([FEATURES], False),
        ([{**CE, "weight": 0.0}, FEATURES], False),
        ([{"term": "crd", "weight": 0.8, "num_negatives": 4}], False),
        ([{"term": "nd", "weight": 1.0}], False),
        ([{"term": "spectral", "weight": 1.0, "pairs": PAIRS}], False),
        ([{"term": "feature_only", "weight": 1.0, "pairs": PAIRS}, CE], True),
        ([{"term": "kd", "weight": 1.0, "temperature": 2.0}], True),
        ([{"term": "kdiga", "weight": 1.0}], True),
    ],
)
def test_a_term_teaches_the_classifier_by_its_logits(recipe: Any, method: list[dict[str, Any]], knows: bool) -> None:
    """To read labels or the teacher's logits is not enough: what is declared is what has a gradient."""
    teacher = {"model": "cifar_resnet8", "random": True}
    config = parse(recipe(teacher=teacher, method=method, data__loader="reference"))
    assert classifier_knows_classes(config, 3) is knows
    run = assemble(config, Rank(0, 1, torch.device("cpu")))
    run.distiller()(next(iter(run.train_batches(0)))).loss.backward()
    assert (run.student.get_classifier().weight.grad is not None) is knows


def test_a_classifier_comes_with_the_weights_unless_it_starts_afresh(tmp_path: Path) -> None:
    downloaded, file = ModelConfig(model="resnet18", pretrained=True), str(tmp_path / "weights.safetensors")
    assert brings_classifier(downloaded, 1000)
    assert not brings_classifier(downloaded, 3)
    assert brings_classifier(downloaded.model_copy(update={"class_indices": "classes.json"}), 3)
    other = {"class_indices": "classes.json", "args": {"num_classes": 5}}
    assert not brings_classifier(downloaded.model_copy(update=other), 3)
    assert not brings_classifier(ModelConfig(model="resnet18"), 1000)
    assert brings_classifier(ModelConfig(model="resnet18", checkpoint=file), 3)
    assert not brings_classifier(ModelConfig(model="resnet18", checkpoint=file, new_head=True), 3)
    assert brings_classifier(ModelConfig(model=f"local-dir:{tmp_path}"), 3)
    torchvision = ModelConfig(model="torchvision:resnet18", pretrained=True)
    assert [brings_classifier(torchvision, number) for number in (3, 1000)] == [False, True]
    hub = ModelConfig(model="hf-hub:timm/resnet18.a1_in1k", pretrained=True)
    assert not brings_classifier(hub, 1000)


def test_a_teacher_of_torchvisions_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classifier would start afresh and answer at random, as timm's, which was refused alone."""
    get_model = models.get_model
    monkeypatch.setattr(models, "get_model", lambda name, weights, **args: get_model(name, weights=None, **args))

    class Teacher(ModelConfig):
        may_start_fresh = False

    config = {"model": "torchvision:resnet18", "pretrained": True}
    with pytest.raises(Refused, match="torchvision:resnet18 for 3 classes: its classifier has 1000 outputs"):
        build_model(Teacher(**config), ["a", "b", "c"])
    assert build_model(ModelConfig(**config), ["a", "b", "c"]).num_classes == 3

"""What a validation measures is known before the run starts, of every kind of recipe and images."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe import parse
from cluster.training.validation import Validation, measured
from tests.conftest import without_training_labels
from tests.multi_label import write_pictures

TEACHER = {"model": "cifar_resnet8", "random": True}
HEADLESS = {**TEACHER, "head": "none"}
KD = {"term": "kd", "weight": 1.0, "temperature": 2.0}
FITNET = {"term": "fitnet", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}]}
OF_LABELS = ["top1", "top5", "class_mean_top1"]
BY_NEIGHBOURS = ["knn_top1", "neighbour_agreement"]
KINDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {  # {kind: (images, fields, what held-out images measure)}
    "a student alone": ("classes", {}, [*OF_LABELS, "nll"]),
    "a teacher": ("classes", {"teacher": TEACHER, "method": [KD]}, [*OF_LABELS, "agreement", "nll", "kl"]),
    "a teacher that is read by no term": ("classes", {"teacher": TEACHER}, [*OF_LABELS, "agreement", "nll", "kl"]),
    "a teacher without a head": ("classes", {"teacher": HEADLESS, "method": [FITNET]}, BY_NEIGHBOURS),
    "a teacher without a head, and labels": (
        "classes",
        {"teacher": HEADLESS, "method": [FITNET, {"term": "ce", "weight": 1.0}]},
        [*OF_LABELS, "nll", *BY_NEIGHBOURS],
    ),
    "teachers with and without a head": (
        "classes",
        {
            "teachers": [{**TEACHER, "name": "classes"}, {**HEADLESS, "name": "features"}],
            "method": [KD, {**FITNET, "teacher": "features"}],
        },
        [*OF_LABELS, "agreement", "nll", "kl", *BY_NEIGHBOURS],
    ),
    "no labels": ("unlabelled", {"teacher": TEACHER, "method": [KD]}, ["agreement", "kl"]),
    "no labels, and a teacher without a head": (
        "unlabelled",
        {"teacher": HEADLESS, "method": [FITNET]},
        ["neighbour_agreement"],
    ),
    "several labels": (
        "several labels",
        {
            "teacher": TEACHER,
            "method": [{"term": "bce", "weight": 1.0}],
            "data__multi_label": True,
            "views": {"size": 16, "crop": "padded", "padding": 1},
        },
        ["mAP", "f1", "agreement", "nll", "kl"],
    ),
}


@pytest.fixture
def roots(image_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A function that gives a folder of images of a kind."""

    def make(kind: str) -> Path:
        if kind == "several labels":
            return write_pictures(tmp_path / kind)
        return image_folder if kind == "classes" else without_training_labels(image_folder, tmp_path / kind)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_what_was_said(kind, recipe, roots):
    images, fields, wanted = KINDS[kind]
    own = {"data__root": str(roots(images)), "data__held_out": 0.25, "data__loader": "reference"}
    run = assemble(parse(recipe(**own | fields)), Rank(0, 1, torch.device("cpu")))
    nothing = SimpleNamespace(**dict.fromkeys(["log_teacher", "warn_of_teacher", "log_features"], lambda *args: None))
    logged: dict[str, float] = {}
    nothing.log_validation = lambda step, metrics: logged.update(metrics)
    Validation(run, nothing).evaluate(SimpleNamespace(evaluated=run.student, step=1))
    assert measured(run.config, run.indexes, "held_out") == wanted
    said = {f"{split}/{name}" for split in ("val", "held_out") for name in measured(run.config, run.indexes, split)}
    assert logged.keys() == said

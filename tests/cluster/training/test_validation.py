"""What a validation measures is known before the run starts, of every kind of recipe and images."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.check import check_run
from cluster.training.loop import new_state
from cluster.training.validation import Validation, measured
from kdcore.errors import Refused
from tests.conftest import without_training_labels
from tests.multi_label import write_pictures

TEACHER = {"model": "cifar_resnet8", "random": True}
HEADLESS = {**TEACHER, "head": "none"}
KD = {"term": "kd", "weight": 1.0, "temperature": 2.0}
BCE = {"term": "bce", "weight": 1.0}
SEVERAL_LABELS = {"data__multi_label": True, "views": {"size": 16, "crop": "padded", "padding": 1}}
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
    "features alone": ("classes", {"teacher": TEACHER, "method": [FITNET]}, ["knn_top1"]),
    "features alone, and no labels": ("unlabelled", {"teacher": TEACHER, "method": [FITNET]}, []),
    "several labels": (
        "several labels",
        {"teacher": TEACHER, "method": [BCE], **SEVERAL_LABELS},
        ["mAP", "f1", "agreement", "nll", "kl"],
    ),
    "several labels, and features alone": (
        "several labels",
        {"teacher": TEACHER, "method": [FITNET], **SEVERAL_LABELS},
        [],
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


def test_features_alone_choose_weights_by_neighbours(recipe):
    """Of a teacher with a head: not by the agreement of the random classifier, which no term teaches."""
    fields = {"teacher": TEACHER, "method": [FITNET], "train__select": "val", "data__loader": "reference"}
    run = assemble(parse(recipe(**fields)), Rank(0, 1, torch.device("cpu")))
    validation, state = Validation(run, MagicMock()), new_state(run)
    validation.evaluate(state)
    assert state.best_score == validation.latest["val/knn_top1"] > 0


def test_weights_that_nothing_tells_apart_are_not_chosen(recipe, roots):
    """Images without labels and no answers to compare with: refused before the run starts, with a remedy."""
    fields = {"data__root": str(roots("unlabelled")), "data__held_out": 0.25, "train__select": "held_out"}
    own = {"teacher": TEACHER, "method": [FITNET], "data__loader": "reference"}
    with pytest.raises(
        Refused, match=r"^train.select is held_out, but .* no term teaches the student's classifier.* kd$"
    ):
        check_run(parse(recipe(**fields | own)))
    check_run(parse(recipe(**fields | own | {"method": [KD]})))


def test_a_student_that_nothing_judges_is_refused(recipe):
    """Its classifiers are two, so that no one vector is what they read; a term on the logits teaches them."""
    student = {"model": "deit_tiny_distilled_patch16_224", "args": {"img_size": 16, "depth": 1}}
    method = [{**FITNET, "pairs": [{"student": "blocks.0", "teacher": "layer2"}]}]
    fields = {"student": student, "teacher": TEACHER, "method": method, "data__loader": "reference"}
    with pytest.raises(Refused, match=r"^no term teaches the student's classifier, .*; add a term on the logits"):
        check_run(parse(recipe(**fields)))

"""A teacher that cannot be what it is taken for is found by its answers: timm#222, pytorch/vision#714, deit#130."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.launch import check_run, launch
from cluster.training.teacher_check import Answers, complaint, examine, natural_order
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from tests.conftest import write_image_folder

LONE = Rank(0, 1, torch.device("cpu"))
CLASSES = sorted(str(number) for number in range(1, 13))  # 1, 10, 11, 12, 2, ...
LABELS = np.repeat(np.arange(12, dtype=np.int32), 6)


def one_hot(predictions: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.from_numpy(predictions).long(), 12).float()


def config_of(recipe, **changes):
    teacher = {"model": "cifar_resnet8", "random": True}
    return parse(recipe(teacher=teacher, method=[{"term": "kd", "weight": 1.0, "temperature": 4}], **changes))


def test_natural_order_is_timms():
    assert [CLASSES[number] for number in natural_order(CLASSES)] == [str(number) for number in range(1, 13)]
    assert natural_order(["a", "b", "c"]) == [0, 1, 2]


def test_a_right_teacher_in_natural_order_is_named(recipe):
    output_of = np.argsort(natural_order(CLASSES))  # of each class
    answers = examine(one_hot(output_of[LABELS]), LABELS, CLASSES, LONE)
    assert (answers.images, answers.top1, answers.reordered) == (72, 1 / 12, 1.0)
    assert answers.chance == pytest.approx(1 / 12)
    assert "natural order (1, 2, 3, ...)" in complaint(answers, config_of(recipe), CLASSES, "val").text


def test_a_right_teacher_is_no_news(recipe):
    assert complaint(examine(one_hot(LABELS), LABELS, CLASSES, LONE), config_of(recipe), CLASSES, "val") is None


def test_chance_knows_frequent_classes(recipe):
    """A teacher that always answers the commonest class is right on 90 %, and at chance."""
    labels = np.array([0] * 900 + [1] * 100, dtype=np.int32)
    answers = examine(torch.tensor([[1.0, 0.0]]).expand(1000, 2), labels, ("a", "b"), LONE)
    assert answers == Answers(images=1000, top1=0.9, chance=pytest.approx(0.9), reordered=None)
    assert "not clearly better than chance (90.00%)" in complaint(answers, config_of(recipe), ("a", "b"), "val").text


def test_too_few_images_to_tell(recipe):
    """Nothing is said against a teacher that is right on half of four images of four classes, but how few they are."""
    found = complaint(Answers(4, 0.5, 0.25, None), config_of(recipe), CLASSES, "held_out")
    assert found.text.endswith("is right on 2 of 4 held-out images: too few to tell from chance (25.00%)")
    assert found.remedy == ""
    found = complaint(Answers(400, 0.25, 0.25, None), config_of(recipe), CLASSES, "held_out")
    assert found.text.endswith(
        "is right on 100 of 400 held-out images (25.00%), not clearly better than chance (25.00%)"
    )
    assert "random" in found.remedy
    assert complaint(Answers(4, 1.0, 0.25, None), config_of(recipe), CLASSES, "held_out") is None


@pytest.mark.parametrize(
    ("teacher", "is_random", "cause"),
    [
        ({"model": "cifar_resnet8", "random": True}, True, "its weights are random, as teacher.random: true asks for"),
        ({"model": "local-dir:exported"}, False, "other weights, its outputs in another order"),
        ({"model": "local-dir:exported", "random": True}, False, "other weights, its outputs in another order"),
        ({"model": "own_nets:build"}, False, "other weights, or none if its function loads none, its outputs"),
        ({"model": "own_nets:build", "random": True}, True, "its weights are random"),
        ({"model": "own_nets:build", "checkpoint": "weights.pt"}, False, "other weights, its outputs in another order"),
    ],
)
def test_random_weights_are_a_cause_where_they_are_asked_for(recipe, teacher, is_random, cause):
    """A weak teacher from a folder or from a function was said to be random, and no other cause was looked for."""
    config = parse(recipe(teacher=teacher, method=[{"term": "kd", "weight": 1.0, "temperature": 4}]))
    assert config.has_random_teacher == is_random
    assert complaint(Answers(400, 0.25, 0.25, None), config, CLASSES, "val").remedy.startswith(
        f"likely causes: {cause}"
    )


@pytest.mark.parametrize(("top1", "is_warned"), [(0.80, True), (0.93, False), (0.99, False)])
def test_far_below_its_own_card(recipe, top1, is_warned):
    """The recipe's published result, where the teacher's own run is not at hand; another std costs 5 points."""
    config = config_of(recipe, about={"expected": {"teacher": 95.0}})
    found = complaint(Answers(10_000, top1, 0.1, None), config, CLASSES, "val")
    assert (found is not None) == is_warned
    assert found is None or "far below the 95.00% of its own card" in found.text


def test_the_card_is_that_of_the_run_that_made_it(recipe, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"metrics": {"val/top1": 0.9}}))
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "student.safetensors")}
    config = parse(recipe(teacher=teacher, method=[{"term": "kd", "weight": 1.0, "temperature": 4}]))
    assert "far below the 90.00%" in complaint(Answers(10_000, 0.6, 0.1, None), config, CLASSES, "val").text


def test_ranks_add_up():
    class Half(Rank):
        def add_up(self, totals):
            return totals

    logits = one_hot(np.roll(LABELS, 3))
    halves = [
        examine(logits[:36], LABELS, CLASSES, Half(0, 2, LONE.device)),
        examine(logits[36:], LABELS, CLASSES, Half(1, 2, LONE.device)),
    ]
    assert sum(half.top1 for half in halves) == examine(logits, LABELS, CLASSES, LONE).top1


def test_a_teacher_without_weights_is_refused(recipe):
    teacher, method = {"model": "cifar_resnet8"}, [{"term": "kd", "weight": 1.0, "temperature": 4}]
    with pytest.raises(Refused, match=r"cifar_resnet8' has no weights.*teacher.checkpoint=FILE"):
        check_run(parse(recipe(teacher=teacher, method=method)))
    check_run(parse(recipe(teacher=teacher | {"random": True}, method=method)))


def test_a_run_says_so(recipe, tmp_path):
    """Of each split, and the causes once; the file of the natural order is there for who needs it."""
    root = write_image_folder(tmp_path / "images", train=20, val=20)
    names = ("2", "10", "3")  # in the data's order: 10, 2, 3
    for split in ("train", "val"):
        for label, name in enumerate(names):
            (root / split / f"class{label}").rename(root / split / name)
    torch.manual_seed(0)
    model = build_model(ModelConfig(model="cifar_resnet8"), names)
    with torch.no_grad():
        model.fc.weight.zero_()  # one answer for all
    weights = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(model.state_dict(), weights)
    changes = {
        "data__root": str(root),
        "data__held_out": 0.5,
        "teacher": {"model": "cifar_resnet8", "checkpoint": str(weights)},
        "method": [{"term": "kd", "weight": 1.0, "temperature": 4}],
        "train__max_steps": 1,
        "scaling__num_workers": 0,
    }
    said: list[str] = []
    result = launch(parse(recipe(**changes)), watch=lambda state, messages: said.extend(messages))
    first, second = [message for message in said if message.startswith("WARNING")]
    assert "is right on 20 of 60 validation images (33.33%), not clearly better than chance" in first
    assert "likely causes" in first
    assert "tried in vain on 60 of them" in first
    assert second.endswith("is right on 10 of 30 held-out images (33.33%), not clearly better than chance (33.33%)")
    indices = json.loads((Path(result.run_dir) / "natural_order.json").read_text())
    assert indices == {"2": 0, "3": 1, "10": 2}

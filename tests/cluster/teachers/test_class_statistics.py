"""What terms read of a teacher over the training set: the same on any number of ranks, of the views that are meant."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from cluster.assembly import Assembly, assemble
from cluster.passes import every_image_once
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.teachers.class_statistics import similarity_of_classes
from cluster.training.launch import check_run
from kdcore.batch import Needs
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.online_teacher import OnlineTeacher
from kdcore.terms.wkd import class_similarity
from pipelines.loaders.base import Request

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoneRank(Rank):
    """One of several ranks in a process of its own: it keeps what it would add up."""

    kept: list[Tensor] = field(default_factory=list)

    def add_up(self, totals: Tensor) -> Tensor:
        self.kept.append(totals)
        return totals


@pytest.fixture
def run(recipe, tmp_path) -> Assembly:
    torch.manual_seed(7)
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c")).state_dict(), path)
    method: list[dict[str, Any]] = [
        {"term": "ce", "weight": 1},
        {"term": "nd", "weight": 1},
        {"term": "wkd_l", "weight": 1, "temperature": 2},
    ]
    teacher = {"model": "cifar_resnet8", "checkpoint": str(path)}
    config = parse(recipe(method=method, teacher=teacher, data__loader="reference"))
    return assemble(config, Rank(0, 1, CPU))


def logits_of(run: Assembly, ids: np.ndarray) -> Tensor:
    """The teacher's logits for training images, cut as for validation."""
    (batch,) = run.evaluation_loader("train").load([Request(view=0, sample_ids=ids)])
    return run.teachers.single(batch).logits


def test_similarity_is_that_of_the_first_images_of_each_class(run):
    labels = run.indexes["train"].labels.astype(np.int64).copy()
    labels[:3] = (labels[:3] + 1) % 3  # unequal classes, not in order
    fewest = np.bincount(labels).min()
    assert fewest < np.bincount(labels).max()
    logits = torch.stack([logits_of(run, np.flatnonzero(labels == k)[:fewest]) for k in range(3)])
    found = similarity_of_classes(run.teachers.single, run.evaluation_loader("train"), labels, 3, Rank(0, 1, CPU))
    torch.testing.assert_close(found, class_similarity(logits))


def test_ranks_share_the_images_of_the_similarity(run):
    labels = run.indexes["train"].labels.astype(np.int64)
    ranks = [LoneRank(number, 2, CPU) for number in range(2)]
    for rank in ranks:
        similarity_of_classes(run.teachers.single, run.evaluation_loader("train"), labels, 3, rank)
    parts = [rank.kept[0] for rank in ranks]
    assert not (parts[0] * parts[1]).any()
    whole = logits_of(run, np.argsort(labels, kind="stable"))
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_means_are_of_the_images_as_they_are_trained_on(run):
    """View 0 of the training images, as KD++ takes its centres from augmented pictures."""
    statistics = run.class_statistics(run.teachers.single)
    train, sums = run.indexes["train"], torch.zeros(3, 64)
    for batch in run.loader("train", run.plan, 48).load(every_image_once(len(train), Rank(0, 1, CPU), 48)):
        sums.index_add_(0, batch.labels, run.teachers.single(batch).features["classifier_input"])
    means = sums / torch.bincount(torch.from_numpy(train.labels.astype(np.int64)))[:, None]
    torch.testing.assert_close(statistics.means["classifier_input"], means)
    assert statistics.similarity is not None


def test_a_method_that_reads_none_takes_no_pass(run, monkeypatch):
    monkeypatch.setattr(Assembly, "loader", None)
    teacher = OnlineTeacher(run.teachers.single.model, Needs(teacher_logits=True))
    assert run.class_statistics(teacher).means == {}


def test_a_class_of_one_image_is_refused(run):
    labels = run.indexes["train"].labels.astype(np.int64).copy()
    labels[labels == 2] = np.where(np.arange((labels == 2).sum()) == 0, 2, 0)
    with pytest.raises(Refused, match="a class has 1 training images"):
        similarity_of_classes(run.teachers.single, run.evaluation_loader("train"), labels, 3, Rank(0, 1, CPU))


@pytest.mark.parametrize(
    ("term", "complaint"),
    [
        ({"term": "nd", "weight": 1, "teacher_tap": "layer1"}, "nd compares vectors, but tap"),
        ({"term": "nd", "weight": 1, "student_tap": "layer1"}, "nd compares vectors, but tap"),
    ],
)
def test_what_does_not_fit_is_known_before_the_pass(recipe, term, complaint, monkeypatch):
    """Statistics of the classes take a pass over all images, on the workers: the shapes are known before."""
    monkeypatch.setattr(Assembly, "class_statistics", None)
    teacher = {"model": "cifar_resnet8", "random": True}
    with pytest.raises(Refused, match=complaint):
        check_run(parse(recipe(teacher=teacher, method=[term])))
    check_run(
        parse(
            recipe(
                teacher=teacher, method=[{"term": "nd", "weight": 1}, {"term": "wkd_l", "weight": 1, "temperature": 4}]
            )
        )
    )

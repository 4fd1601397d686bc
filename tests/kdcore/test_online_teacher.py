"""A teacher that runs beside its student: what it answers, of images normalised for it, and its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.batch import Batch, Needs, Statistics
from kdcore.online_teacher import OnlineTeacher, input_gradient, renormalisation
from kdcore.taps import CLASSIFIER_INPUT
from tests.kdcore.distillers import SIZE, batch, network


def test_an_online_teacher_answers_what_is_needed_and_no_other_taps():
    needs = Needs(
        teacher_taps=frozenset({"layer1"}), class_means=frozenset({CLASSIFIER_INPUT}), teacher_classifier=True
    )
    model = network(9)
    answer = OnlineTeacher(model, needs)(batch())
    assert answer.features.keys() == {"layer1", CLASSIFIER_INPUT}
    assert answer.input_gradient is None
    classifier = answer.classifier
    torch.testing.assert_close(answer.features[CLASSIFIER_INPUT] @ classifier.weight.T + classifier.bias, answer.logits)
    assert OnlineTeacher(model, Needs(teacher_logits=True))(batch()).classifier is None


STUDENTS_STATISTICS = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
TEACHERS_STATISTICS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalised(pixels: Tensor, statistics: Statistics) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)
    return (pixels - mean) / std


def test_renormalised_images_are_those_normalised_for_the_teacher():
    pixels = torch.rand(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    model = network(9)
    teacher = OnlineTeacher(
        model, Needs(teacher_logits=True), renormalisation(STUDENTS_STATISTICS, TEACHERS_STATISTICS)
    )
    shown = Batch(
        normalised(pixels, STUDENTS_STATISTICS), torch.zeros(4, dtype=torch.long), torch.arange(4), torch.zeros(4)
    )
    expected = model(normalised(pixels, TEACHERS_STATISTICS))
    torch.testing.assert_close(teacher(shown).logits, expected, rtol=1e-4, atol=1e-4)
    assert renormalisation(TEACHERS_STATISTICS, TEACHERS_STATISTICS) is None


def test_a_teachers_gradient_is_with_respect_to_the_batchs_images():
    renormalise = renormalisation(STUDENTS_STATISTICS, TEACHERS_STATISTICS)
    model, given = network(9), batch()
    answer = OnlineTeacher(model, Needs(teacher_input_gradient=True), renormalise)(given)
    scale, shift = renormalise
    own = (given.images * scale + shift).requires_grad_(True)
    F.cross_entropy(model(own), given.labels, reduction="sum").backward()
    torch.testing.assert_close(answer.input_gradient, own.grad * scale)  # the chain rule
    assert not answer.input_gradient.requires_grad
    assert not answer.logits.requires_grad
    assert not given.images.requires_grad


def test_an_input_gradient_is_each_samples_own():
    model = network(9).eval()
    given = batch()
    images = given.images.clone().requires_grad_(True)
    together = input_gradient(model(images), given.labels, images)
    alone = images.detach()[2:3].clone().requires_grad_(True)
    single = input_gradient(model(alone), given.labels[2:3], alone)
    torch.testing.assert_close(together[2:3], single, rtol=1e-4, atol=1e-6)

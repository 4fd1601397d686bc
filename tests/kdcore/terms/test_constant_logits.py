"""Losses on correlation and scale: a gradient that one step survives at constant logits, and none of two classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.dist import dist
from kdcore.terms.dkd import dkd
from kdcore.terms.logits import cross_entropy, kd
from kdcore.terms.lskd import lskd, standardise
from kdcore.terms.mlkd import mlkd

LABELS = torch.arange(8)
LOSSES = {
    "dist": lambda s, t: dist(s, t, 4.0, 1.0, 1.0),
    "dist of samples": lambda s, t: dist(s, t, 1.0, 1.0, 0.0),
    "dist of classes": lambda s, t: dist(s, t, 1.0, 0.0, 1.0),
    "lskd": lambda s, t: lskd(s, t, 2.0),
    "dkd + lskd": lambda s, t: dkd(standardise(s), standardise(t), LABELS, 2.0, 1.0, 4.0),
    "mlkd + lskd": lambda s, t: mlkd(s, t, (2.0,), standardised=True),
}


def logits(seed: int, scale: float = 3.0, classes: int = 20) -> torch.Tensor:
    return scale * torch.randn(8, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("start", [0.0, 0.3])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-5, 1e-3])
def test_nearly_constant_logits_have_a_gradient_of_ordinary_size(name, start, scale):
    """Of at most a hundred times that of kd at the same place; it was a million times that."""
    student = (start + logits(1, scale)).requires_grad_()
    teacher = logits(2)
    (found,) = torch.autograd.grad(LOSSES[name](student, teacher).mean(), student)
    (usual,) = torch.autograd.grad(kd(student, teacher, 4.0).mean(), student)
    assert found.isfinite().all()
    assert found.norm() < 300 * usual.norm()
    assert found.norm() > 0.1 * usual.norm()  # and it is not silent


@pytest.mark.parametrize("name", ["dist", "lskd"])
def test_the_gradient_at_zero_points_at_the_teacher(name):
    student, teacher = torch.zeros(8, 20, requires_grad=True), logits(2)
    (gradient,) = torch.autograd.grad(LOSSES[name](student, teacher).sum(), student)
    assert (F.cosine_similarity(-gradient, teacher - teacher.mean(dim=1, keepdim=True)) > 0.5).all()


@pytest.mark.parametrize("name", ["dist", "lskd"])
def test_sgd_survives_a_classifier_of_zeros(name):
    torch.manual_seed(0)
    features, teacher = torch.randn(8, 16), logits(2)
    classifier = torch.nn.Linear(16, 20)
    torch.nn.init.zeros_(classifier.weight)
    torch.nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.SGD(classifier.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(60):
        student = classifier(features)
        labels = teacher.argmax(dim=1)
        loss = (cross_entropy(student, labels) + LOSSES[name](student, teacher)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert max(losses) < 3 * losses[0]
    assert losses[-1] < 0.5 * losses[0]


def published_dist(student, teacher, temperature):
    p, q = F.softmax(teacher / temperature, dim=1), F.softmax(student / temperature, dim=1)

    def pearson(dim):
        a, b = q - q.mean(dim, keepdim=True), p - p.mean(dim, keepdim=True)
        return (a * b).sum(dim) / (a.norm(dim=dim) * b.norm(dim=dim) + 1e-8)

    return temperature**2 * (1 - pearson(1) + 1 - pearson(0).mean())


def test_the_bound_of_nearly_constant_logits_has_no_gradient_of_its_own():
    """It is a divisor: restated with one that is a number, value and gradient are the same."""
    student, teacher = logits(1, 1e-3).double().requires_grad_(), logits(2).double()
    p, q = teacher.softmax(dim=1), student.softmax(dim=1)
    slope = torch.tensor((q * (1 - q)).tolist(), dtype=torch.float64)

    def correlation(dim):
        a, b = q - q.mean(dim, keepdim=True), p - p.mean(dim, keepdim=True)
        assert (a.norm(dim=dim) < 0.01 * slope.norm(dim=dim)).all()
        return (a * b).sum(dim) / (0.01 * slope.norm(dim=dim) * b.norm(dim=dim) + 1e-8)

    restated, found = 2 - correlation(1) - correlation(0).mean(), dist(student, teacher, 1.0, 1.0, 1.0)
    torch.testing.assert_close(found, restated, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(one.sum(), student, retain_graph=True)[0] for one in (found, restated))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def published_lskd(student, teacher, temperature):
    return kd(*((v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True) for v in (student, teacher)), temperature)


@pytest.mark.parametrize("classes", [5, 20, 1000])
@pytest.mark.parametrize("scale", [0.5, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ordinary_logits_have_the_published_values_and_gradients(classes, scale, temperature):
    student, teacher = (logits(seed, scale, classes).double() for seed in (1, 2))
    student.requires_grad_()
    for found, published in (
        (dist(student, teacher, temperature, 1.0, 1.0), published_dist(student, teacher, temperature)),
        (lskd(student, teacher, temperature), published_lskd(student, teacher, temperature)),
    ):
        torch.testing.assert_close(found, published, rtol=1e-12, atol=1e-12)
        gradients = (torch.autograd.grad(one.sum(), student, retain_graph=True)[0] for one in (found, published))
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


TWO = TermContext({}, {}, num_classes=2, num_samples=8, class_similarity=torch.eye(2))


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"term": "lskd", "temperature": 2}, "take kd or ttm"),
        ({"term": "dkd", "temperature": 2, "non_target_weight": 1, "standardise": True}, "set standardise: false"),
        ({"term": "mlkd", "standardise": True}, "set standardise: false"),
        ({"term": "dist", "temperature": 2, "intra_weight": 0}, "set intra_weight, or take kd"),
        ({"term": "wkd_l", "temperature": 2}, "take kd or ttm"),
        (
            {"term": "rld", "temperature": 2, "correlation_weight": 8, "confidence_weight": 0},
            "set confidence_weight, or take kd",
        ),
        (
            {"term": "dkd", "temperature": 2, "non_target_weight": 8, "target_weight": 0},
            "set target_weight, or take kd",
        ),
    ],
)
def test_two_classes_that_teach_nothing_are_refused(fields, remedy):
    term = parse_term(fields | {"weight": 1})
    with pytest.raises(Refused, match=f"with 2 classes.* so nothing is learnt; {remedy}"):
        term.build(TWO)
    term.build(replace(TWO, num_classes=3))


def test_two_classes_leave_dist_its_column_part():
    student, teacher = logits(1, classes=2).requires_grad_(), logits(2, classes=2)
    alone, both = (torch.autograd.grad(dist(student, teacher, 1.0, w, 1.0).mean(), student)[0] for w in (0.0, 1.0))
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-5)
    assert alone.norm() > 1e-2


@pytest.mark.parametrize(
    "fields",
    [
        {"term": "dist", "temperature": 2},
        {"term": "rld", "temperature": 2, "correlation_weight": 8},
        {"term": "dkd", "temperature": 2, "non_target_weight": 8},
        {"term": "nkd", "non_target_weight": 1},
    ],
)
def test_two_classes_of_which_a_part_teaches_are_taken(fields):
    module = parse_term(fields | {"weight": 1}).build(TWO)
    student = logits(1, classes=2).requires_grad_()
    labels = torch.arange(len(student)) % 2
    module(TermInputs(labels, student, TeacherOutputs(logits=logits(2, classes=2)))).mean().backward()
    assert student.grad.norm() > 1e-2

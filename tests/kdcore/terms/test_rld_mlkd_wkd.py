"""RLD, MLKD and WKD-L: parity of their losses with plain restatements, invariants, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from kdcore.terms.mlkd import mlkd
from kdcore.terms.rld import masked_correlation, sample_confidence
from kdcore.terms.wkd import class_similarity, transport_costs, wkd_l
from tests.kdcore.terms.restated import LABELS, each, kl, logits, plain_kd, softmax

# --- restatements ---


def plain_confidence(i, s, t, temperature=2.0):
    top, q = max(softmax(t / temperature)), softmax(s / temperature)[LABELS[i].item()]
    return temperature**2 * kl([top, 1 - top], [q, 1 - q])


def plain_masked(i, s, t, temperature=3.0):
    below = [k for k in range(len(t)) if t[k] < t[LABELS[i].item()]]
    return temperature**2 * kl(*(softmax(v[below] / temperature) for v in (t, s))) if below else 0


def plain_mlkd(student, teacher, temperatures=(2.0, 3.0, 3.0)):
    """Sums over pairs of samples and of classes, one temperature at a time; B and K are 4 and 5."""
    certain = [max(softmax(t)) for t in teacher]
    common = np.sum([softmax(t) for t in teacher], axis=0)
    samples, classes = (np.mean([v <= np.median(values) for v in values]) for values in (certain, common))
    total = np.zeros(len(teacher))
    for temperature in temperatures:
        p, q = (np.array([softmax(row / temperature) for row in logits]) for logits in (teacher, student))
        whole = sum(
            (sum(a * b for a, b in zip(p[:, i], p[:, j], strict=True)) - sum(q[:, i] * q[:, j])) ** 2
            for i in range(5)
            for j in range(5)
        )
        for b in range(4):
            rows = sum((sum(p[b] * p[j]) - sum(q[b] * q[j])) ** 2 for j in range(4))
            kd_part = plain_kd(b, student[b], teacher[b], temperature)
            total[b] += samples * (kd_part + rows) + classes * whole / 5
    return total


SIMILARITY = np.array([[1.0 if i == j else 0.8 / (i + j) for j in range(5)] for i in range(5)])
COSTS = 1 - np.exp(-1.5 * (1 - SIMILARITY)) + 1e-8


def plain_wkd_l(i, s, t, temperature=2.0, regularisation=0.1, iterations=4):
    """Sinkhorn's iteration over the four classes other than the label, which are cut out of everything."""
    others = [k for k in range(len(t)) if k != LABELS[i].item()]
    p, q = (np.array(softmax(v[others] / temperature)) for v in (t, s))
    costs = COSTS[np.ix_(others, others)]
    kernel = np.exp(-costs / regularisation)
    u = np.full(4, 1 / 4)
    for _ in range(iterations):
        v = p / (kernel.T @ u + 1e-8)
        u = q / (kernel @ v + 1e-8)
    return sum(u[a] * kernel[a, b] * v[b] * costs[a, b] for a in range(4) for b in range(4))


LOSSES = {
    "rld, confidence": (
        lambda s, t: sample_confidence(s, t, LABELS, 2.0),
        each(plain_confidence),
        lambda t: each(plain_confidence)(t, t),
    ),
    "rld, correlation": (lambda s, t: masked_correlation(s, t, LABELS, 3.0), each(plain_masked), lambda t: 0),
    "mlkd": (lambda s, t: mlkd(s, t, (2.0, 3.0, 3.0)), plain_mlkd, lambda t: 0),
    "wkd_l": (
        lambda s, t: wkd_l(
            s, t, LABELS, torch.from_numpy(COSTS).to(torch.promote_types(s.dtype, torch.float32)), 2.0, 0.1, 4
        ),
        each(plain_wkd_l),
        lambda t: each(plain_wkd_l)(t, t),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_contract(name, loss_property, loss_case):
    loss, restated, equal = LOSSES[name]
    loss_case(loss, logits(1), logits(2), restated, equal).check(loss_property)


# --- invariants ---


def test_rld_takes_the_label_where_the_teacher_is_wrong_and_nothing_where_it_is_last():
    teacher = torch.tensor([[3.0, 1.0, 2.0, -1.0]], requires_grad=False)
    student = torch.tensor([[1.0, 3.0, 2.0, -1.0]], requires_grad=True)
    wrong, last = torch.tensor([1]), torch.tensor([3])
    # the student is as sure of the label as the teacher is of its own, wrong class
    torch.testing.assert_close(sample_confidence(student, teacher, wrong, 1.0), torch.zeros(1), atol=1e-6, rtol=0)
    loss = masked_correlation(student, teacher, last, 1.0)
    assert loss.item() == 0
    loss.sum().backward()
    assert (student.grad == 0).all()


def test_transport_is_free_between_classes_that_are_the_same_and_dear_between_others():
    costs = transport_costs(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 2.0)
    torch.testing.assert_close(costs[0, :2], torch.full((2,), 1e-8))
    assert costs[0, 2].item() == pytest.approx(1 - math.exp(-2), rel=1e-6)
    teacher, label = torch.tensor([[9.0, 0.0, 0.0, 0.0]]), torch.tensor([3])
    free, dear = torch.tensor([[0.0, 9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 9.0, 0.0]])
    four = torch.ones(4, 4) * 0.5
    four[:3, :3] = costs
    near, far = (wkd_l(s, teacher, label, four, 1.0, 0.05, 50).item() for s in (free, dear))
    assert near < 0.01
    assert far == pytest.approx(1 - math.exp(-2), rel=0.01)


def test_sinkhorn_approaches_the_exact_transport_cost():
    """Of distributions on two classes (beside the label): what moves is the difference, at the cost between them."""
    costs = transport_costs(torch.tensor([[1.0, 0.3, 0.5], [0.3, 1.0, 0.5], [0.5, 0.5, 1.0]], dtype=torch.float64), 1.0)
    teacher = torch.tensor([[1.0, 0.0, 7.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 0.5, -3.0]], dtype=torch.float64)
    p, q = teacher[0, :2].softmax(0), student[0, :2].softmax(0)
    exact = (p[0] - q[0]).abs() * costs[0, 1]
    values = [wkd_l(student, teacher, torch.tensor([2]), costs, 1.0, r, 2000).item() for r in (0.2, 0.1, 0.05)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(exact.item(), rel=1e-2)


def test_class_similarity_is_centred_kernel_alignment():
    """Against Hilbert-Schmidt's criterion with the centring matrix, as Kornblith et al. (2019) write it."""
    x = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centring = np.eye(6) - 1 / 6
    grams = [centring @ (k @ k.T) @ centring for k in x.numpy()]
    expected = [[np.trace(a @ b) / math.sqrt(np.trace(a @ a) * np.trace(b @ b)) for b in grams] for a in grams]
    np.testing.assert_allclose(class_similarity(x).numpy(), expected, rtol=1e-12)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    torch.testing.assert_close(class_similarity(3 * x @ rotation + 7), class_similarity(x))


# --- refusals ---


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: sample_confidence(s, t, LABELS, 1.0),
        lambda s, t: masked_correlation(s, t, LABELS, 1.0),
        lambda s, t: mlkd(s, t, (1.0,)),
        lambda s, t: wkd_l(s, t, LABELS, torch.zeros(5, 5), 1.0, 0.1, 1),
    ],
)
def test_a_teacher_of_other_classes_is_refused(loss):
    with pytest.raises(Refused, match=r"\[4, 5\].*\[4, 1\].*student's classes"):
        loss(logits(1), logits(2)[:, :1])


def test_mixed_labels_are_refused():
    with pytest.raises(Refused, match="mixed"):
        sample_confidence(logits(1), logits(2), torch.zeros(4, 5), 1.0)
    with pytest.raises(Refused, match="mixed"):
        wkd_l(logits(1), logits(2), torch.zeros(4, 5), torch.zeros(5, 5), 1.0, 0.1, 1)


def test_a_batch_of_one_has_no_relations():
    with pytest.raises(Refused, match="1 sample"):
        mlkd(logits(1)[:1], logits(2)[:1], (1.0,))

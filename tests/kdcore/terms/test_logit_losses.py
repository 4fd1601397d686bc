"""The losses on logits: reference vectors, invariants, and parity with plain restatements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from kdcore.terms import dist as dist_module
from kdcore.terms.dist import dist
from kdcore.terms.dkd import decoupled, dkd, nkd
from kdcore.terms.logits import cross_entropy, kd
from kdcore.terms.lskd import lskd, standardise
from kdcore.terms.ttm import power_sum, ttm, wttm
from tests.kdcore.terms.restated import LABELS, each, kl, logits, plain_kd, softmax

TEACHER = torch.tensor([[2.0, 1.0, 0.0, -1.0]], dtype=torch.float64)
STUDENT = torch.tensor([[1.5, 0.5, 0.5, -2.0]], dtype=torch.float64)
LABEL = torch.tensor([0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 6e-9), (torch.float32, 3e-6)])
@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda s, t: cross_entropy(s, LABEL), 0.56869234),
        (lambda s, t: power_sum(t, 0.5), 1.76340010),
        (lambda s, t: ttm(s, t, 0.5), 0.12242849),
        (lambda s, t: wttm(s, t, 0.5), 0.21589041),
        (lambda s, t: kd(s, t, 4.0), 0.12237137),
        (lambda s, t: decoupled(s, t, LABEL, 4.0)[0], 0.00672045),
        (lambda s, t: decoupled(s, t, LABEL, 4.0)[1], 0.17790588),
        (lambda s, t: dkd(s, t, LABEL, 4.0, 1.0, 8.0), 1.42996750),
    ],
)
def test_reference_vectors(loss, expected, dtype, tolerance):
    value = loss(STUDENT.to(dtype), TEACHER.to(dtype))
    assert value.dtype == dtype
    assert value.item() == pytest.approx(expected, abs=tolerance * max(1, expected))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (ttm, [0.11121121, -0.06768693, 0.04091232, -0.08443659]),
        (wttm, [0.19610985, -0.11935914, 0.07214478, -0.14889549]),
    ],
)
def test_reference_gradients(loss, expected):
    student = STUDENT.clone().requires_grad_(True)
    loss(student, TEACHER, 0.5).sum().backward()
    np.testing.assert_allclose(student.grad[0], expected, atol=6e-9)


# --- restatements: one sample, one class at a time ---


def plain_smoothed_ce(i, s, t):
    return -sum((0.92 if k == LABELS[i].item() else 0.02) * math.log(q) for k, q in enumerate(softmax(s)))


def plain_ttm(i, s, t, gamma=0.3):
    powered = [p**gamma for p in softmax(t)]
    return kl([p / sum(powered) for p in powered], softmax(s))


def plain_wttm(i, s, t, gamma=0.3):
    return sum(p**gamma for p in softmax(t)) * plain_ttm(i, s, t, gamma)


def plain_dkd(i, s, t, temperature=2.0):
    label = LABELS[i].item()
    p, q = softmax(t / temperature), softmax(s / temperature)
    target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others = kl(*([v / (1 - d[label]) for k, v in enumerate(d) if k != label] for d in (p, q)))
    return temperature**2 * (0.7 * target + 5.0 * others)


def plain_nkd(i, s, t, temperature=2.0):
    label = LABELS[i].item()
    target = -softmax(t)[label] * math.log(softmax(s)[label])
    p, q = (softmax(np.delete(v, label) / temperature) for v in (t, s))
    return target - 1.5 * temperature**2 * sum(a * math.log(b) for a, b in zip(p, q, strict=True))


def plain_lskd(i, s, t):
    s, t = ((v - v.mean()) / math.sqrt(((v - v.mean()) ** 2).sum() / (len(v) - 1)) for v in (s, t))
    return plain_kd(i, s, t, 2.0)


def plain_dist(student, teacher, temperature=2.0):
    q, p = (np.array([softmax(row / temperature) for row in logits]) for logits in (student, teacher))
    columns = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(q.shape[1])])
    return [temperature**2 * (0.5 * (1 - np.corrcoef(a, b)[0, 1]) + 2.0 * columns) for a, b in zip(q, p, strict=True)]


def plain_dkd_lskd(i, s, t):
    s, t = ((v - v.mean()) / v.std(ddof=1) for v in (s, t))
    return plain_dkd(i, s, t)


def nkd_floor(teacher):
    return [plain_nkd(i, t, t) for i, t in enumerate(teacher)]


LOSSES = {
    "kd": (lambda s, t: kd(s, t, 3.0), each(plain_kd), lambda t: 0),
    "ttm": (lambda s, t: ttm(s, t, 0.3), each(plain_ttm), lambda t: each(plain_ttm)(t, t)),
    "wttm": (lambda s, t: wttm(s, t, 0.3), each(plain_wttm), lambda t: each(plain_wttm)(t, t)),
    "dkd": (lambda s, t: dkd(s, t, LABELS, 2.0, 0.7, 5.0), each(plain_dkd), lambda t: 0),
    "nkd": (lambda s, t: nkd(s, t, LABELS, 2.0, 1.5), each(plain_nkd), nkd_floor),
    "lskd": (lambda s, t: lskd(s, t, 2.0), each(plain_lskd), lambda t: 0),
    "dkd + lskd": (
        lambda s, t: dkd(standardise(s), standardise(t), LABELS, 2.0, 0.7, 5.0),
        each(plain_dkd_lskd),
        lambda t: 0,
    ),
    "dist": (lambda s, t: dist(s, t, 2.0, 0.5, 2.0), plain_dist, lambda t: 0),
    "ce": (
        lambda s, t: cross_entropy(s, LABELS, 0.1),
        each(plain_smoothed_ce),
        lambda t: each(plain_smoothed_ce)(t, t),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_contract(name, loss_property, loss_case, monkeypatch):
    monkeypatch.setattr(dist_module, "_EPSILON", 0.0)  # np.corrcoef has none
    loss, restated, equal = LOSSES[name]
    loss_case(loss, logits(1), logits(2), restated, equal).check(loss_property)


# --- invariants ---


def test_cross_entropy_of_soft_labels_is_linear_in_them():
    z, classes = logits(3), [cross_entropy(logits(3), torch.full((4,), k)) for k in range(5)]
    soft = torch.rand(4, 5, dtype=torch.float64).softmax(dim=1)
    torch.testing.assert_close(cross_entropy(z, soft), sum(soft[:, k] * classes[k] for k in range(5)))


def test_gamma_1_is_kl_and_weight_1():
    s, t = logits(1), logits(2)
    torch.testing.assert_close(power_sum(t, 1.0), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(ttm(s, t, 1.0), kd(s, t, 1.0))
    torch.testing.assert_close(wttm(s, t, 1.0), kd(s, t, 1.0))


@pytest.mark.parametrize("gamma", [0.1, 0.2, 0.7])
def test_power_sum_lies_between_one_hot_and_uniform(gamma):
    one_hot, uniform = torch.tensor([[1e4, 0.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 5)
    assert power_sum(one_hot, gamma).item() == pytest.approx(1)
    assert power_sum(uniform, gamma).item() == pytest.approx(5 ** (1 - gamma))
    between = power_sum(logits(4, (64, 5)), gamma)
    assert (between > 1).all()
    assert (between < 5 ** (1 - gamma)).all()


@pytest.mark.parametrize("deviation", [5.0, 20.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("gamma", [0.1, 0.8])
def test_power_sum_keeps_its_digits_at_large_logits(deviation, gamma):
    """In float32, against the power of a softmax taken in float64 over 100 classes."""
    teacher = logits(6, (512, 100)) / 2 * deviation
    exact = teacher.float().double().softmax(dim=1).pow(gamma).sum(dim=1)
    error = power_sum(teacher.float(), gamma).double() / exact - 1
    assert error.abs().max() < 1e-6


def test_power_sum_is_a_constant_to_the_teacher():
    teacher = logits(2).requires_grad_(True)
    assert not power_sum(teacher, 0.5).requires_grad


def test_power_sum_does_not_underflow_in_float16():
    teacher = torch.tensor([[0.0, -18.4]], dtype=torch.float16)  # the probability 1e-8 is 0 in float16
    assert power_sum(teacher, 0.1).item() == pytest.approx(1 + 0.158, abs=2e-3)


@pytest.mark.parametrize("loss", [ttm, wttm])
def test_ttm_and_wttm_ignore_constants_and_vanish_on_the_transformed_teacher(loss):
    s, t = logits(1), logits(2)
    torch.testing.assert_close(loss(s + 3, t - 7, 0.25), loss(s, t, 0.25))
    torch.testing.assert_close(loss(s, s / 0.25, 0.25), torch.zeros(4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_wttm_is_a_mean_of_products():
    s, t = logits(1, (2, 5)), torch.tensor([[20.0, 0, 0, 0, 0], [0.1, 0, 0, 0, 0]], dtype=torch.float64)
    products = power_sum(t, 0.1) * ttm(s, t, 0.1)
    torch.testing.assert_close(wttm(s, t, 0.1), products)
    assert abs(wttm(s, t, 0.1).mean() - power_sum(t, 0.1).mean() * ttm(s, t, 0.1).mean()) > 0.1


@pytest.mark.parametrize("temperature", [1.5, 2.0, 4.0])
def test_ttm_is_kd_and_a_renyi_entropy(temperature):
    """D(p_T | q) = T D(p_T | q_T) - (T - 1) H_{1/T}(q) + (T - 1) H(p_T), with Renyi's and Shannon's entropies."""
    s, t = logits(1), logits(2)
    p = (t / temperature).softmax(dim=1)
    shannon = -(p * p.log()).sum(dim=1)
    order = 1 / temperature
    renyi = s.softmax(dim=1).pow(order).sum(dim=1).log() / (1 - order)
    right = kd(s, t, temperature) / temperature + (temperature - 1) * (shannon - renyi)
    torch.testing.assert_close(ttm(s, t, order), right)


def test_dkd_parts_make_up_kd():
    s, t = logits(1), logits(2)
    target, others = decoupled(s, t, LABELS, 4.0)
    p = (t / 4.0).softmax(dim=1).gather(1, LABELS[:, None]).squeeze(1)
    torch.testing.assert_close(target + (1 - p) * others, kd(s, t, 4.0))


def test_dkd_survives_a_certain_teacher():
    student = torch.zeros(1, 4, requires_grad=True)
    loss = dkd(student, torch.tensor([[200.0, 0.0, 1.0, -1.0]]), LABEL, 1.0, 1.0, 8.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(student.grad).all()


def test_lskd_ignores_scale_and_shift_and_survives_constant_logits():
    s, t = logits(1), logits(2)
    torch.testing.assert_close(lskd(3 * s + 1, 0.2 * t - 5, 2.0), lskd(s, t, 2.0))
    flat = torch.zeros(2, 5, requires_grad=True)
    lskd(flat, t[:2].float(), 2.0).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_dist_ignores_a_reordering_of_samples():
    s, t, order = logits(1), logits(2), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(dist(s[order], t[order], 1.0, 1.0, 1.0), dist(s, t, 1.0, 1.0, 1.0)[order])


# --- refusals ---


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: kd(s, t, 1.0),
        lambda s, t: ttm(s, t, 0.5),
        lambda s, t: lskd(s, t, 1.0),
        lambda s, t: dist(s, t, 1.0, 1.0, 1.0),
        lambda s, t: dkd(s, t, LABELS, 1.0, 1.0, 1.0),
        lambda s, t: nkd(s, t, LABELS, 1.0, 1.0),
    ],
)
def test_a_teacher_of_other_classes_is_refused(loss):
    with pytest.raises(Refused, match=r"\[4, 5\].*\[4, 1\].*student's classes"):
        loss(logits(1), logits(2)[:, :1])


@pytest.mark.parametrize("loss", [dkd, nkd])
def test_mixed_labels_are_refused(loss):
    weights = (1.0, 1.0, 1.0) if loss is dkd else (1.0, 1.0)
    with pytest.raises(Refused, match="mixed"):
        loss(logits(1), logits(2), torch.zeros(4, 5), *weights)


def test_a_batch_of_one_has_no_correlation():
    with pytest.raises(Refused, match="1 sample"):
        dist(logits(1)[:1], logits(2)[:1], 1.0, 1.0, 1.0)

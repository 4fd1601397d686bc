"""The losses of images with several labels, against torch's own and against the formulas written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import REGISTRY, TermContext, TermInputs, parse_term
from kdcore.terms.binary import binary_cross_entropy, binary_kd
from tests.kdcore.terms.table import TERMS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 2 * torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
TEACHER = 2 * torch.randn(6, 4, generator=GENERATOR, dtype=torch.float64)
LABELS = (torch.rand(6, 4, generator=GENERATOR) < 0.4).double()
COUNTS = torch.tensor([3, 6, 1, 2])
CONTEXT = TermContext({}, {}, num_classes=4, num_samples=12, classes=("a", "b", "c", "d"), class_counts=COUNTS)


def value(name: str, labels: torch.Tensor = LABELS, **fields: object) -> torch.Tensor:
    module = parse_term({"term": name, "weight": 1.0, **fields}).build(CONTEXT)
    assert not module.state_dict(), "a checkpoint is as it was"
    return module(TermInputs(labels=labels, student_logits=LOGITS, teacher=TeacherOutputs(logits=TEACHER)))


def test_bce_is_torchs() -> None:
    assert torch.allclose(value("bce").mean(), nn.BCEWithLogitsLoss()(LOGITS, LABELS))
    mixed = 0.3 * LABELS + 0.7 * LABELS.flip(0)
    assert torch.allclose(value("bce", mixed).mean(), nn.BCEWithLogitsLoss()(LOGITS, mixed))
    weight = torch.tensor([2.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    positive = torch.tensor([9 / 3, 6 / 6, 11 / 1, 10 / 2], dtype=torch.float64)
    theirs = nn.BCEWithLogitsLoss(weight=weight, pos_weight=positive)(LOGITS, LABELS)
    ours = value("bce", class_weights={"a": 2.0, "c": 0.0}, positive_weights="balanced").mean()
    assert torch.allclose(ours, theirs)
    balanced = torch.tensor([12 / (4 * n) for n in COUNTS.tolist()], dtype=torch.float64)
    assert torch.allclose(
        value("bce", class_weights="balanced").mean(), nn.BCEWithLogitsLoss(weight=balanced)(LOGITS, LABELS)
    )


def test_a_class_number_is_that_one_class() -> None:
    numbers = torch.tensor([0, 3, 1, 1, 2, 0])
    assert torch.equal(
        binary_cross_entropy(LOGITS, numbers), binary_cross_entropy(LOGITS, torch.eye(4, dtype=torch.float64)[numbers])
    )


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_binary_kd_written_out(temperature: float) -> None:
    expected = []
    for z, v in zip(LOGITS.tolist(), TEACHER.tolist(), strict=True):
        total = 0.0
        for ours, theirs in zip(z, v, strict=True):
            q, p = (1 / (1 + math.exp(-x / temperature)) for x in (ours, theirs))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        expected.append(temperature**2 * total / 4)
    assert value("binary_kd", temperature=temperature).tolist() == pytest.approx(expected, rel=1e-5)


def test_binary_kd_is_0_for_equal_logits_and_finite_for_extreme_ones() -> None:
    assert binary_kd(TEACHER, TEACHER, 2.0).tolist() == [0.0] * 6
    student, teacher = torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]])
    loss = binary_kd(student, teacher, 1.0)
    loss.sum().backward()
    assert loss.tolist() == [1e4]
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_what_is_refused() -> None:
    with pytest.raises(Refused, match=r"positive_weights: there is no class 'e'; did you mean a, b, c"):
        value("bce", positive_weights={"e": 1.0})
    none = TermContext({}, {}, num_classes=2, num_samples=3, classes=("a", "b"), class_counts=torch.tensor([3, 0]))
    with pytest.raises(Refused, match=r"positive_weights: balanced, but class 'b' has no training image"):
        parse_term({"term": "bce", "weight": 1.0, "positive_weights": "balanced"}).build(none)
    with pytest.raises(Refused, match="choose a teacher trained on the student's classes"):
        binary_kd(LOGITS, TEACHER[:, :3], 1.0)


def test_which_terms_fit_images_with_several_labels() -> None:
    """Those made for it, and those on features alone. A new term on labels or logits does not, unless it says so."""
    fit = {name for name in REGISTRY if parse_term({"term": name, "weight": 1.0, **TERMS[name]}).fits_multi_label}
    on_features = {"feature_mse", "feature_only", "fitnet", "simkd", "at", "sp", "rkd", "pkt", "vid", "reviewkd"}
    assert fit == {"bce", "binary_kd", "vitkd", "diffkd", "itrd", "wkd_f"} | on_features
    spectral = {**TERMS["spectral"], "only_correct_teacher": False}
    for term in ({"term": "spectral", **spectral}, {"term": "crd", **TERMS["crd"], "negatives": "all"}):
        assert parse_term({"weight": 1.0, **term}).fits_multi_label, "a setting may leave the labels alone"

"""Weights of classes in the cross-entropy, against the sum over classes written out."""

from __future__ import annotations

import math

import pytest
import torch

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.class_weights import class_weight_vector, positive_weight_vector

CLASSES = ("ant", "bee", "cat")
LOGITS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CONTEXT = TermContext({}, {}, num_classes=3, num_samples=12, classes=CLASSES, class_counts=torch.tensor([6, 4, 2]))


def value(labels: torch.Tensor, **fields: object) -> list[float]:
    module = parse_term({"term": "ce", "weight": 1.0, **fields}).build(CONTEXT)
    assert not module.state_dict(), "a checkpoint is as it was"
    return module(TermInputs(labels=labels, student_logits=LOGITS, teacher=TeacherOutputs())).tolist()


def written_out(targets: list[list[float]], weights: list[float], smoothing: float = 0.0) -> list[float]:
    """-sum_k w_k ((1 - s) y_k + s / K) log q_k, image by image."""
    found = []
    for row, target in zip(LOGITS.tolist(), targets, strict=True):
        total = sum(math.exp(x) for x in row)
        terms = (
            w * ((1 - smoothing) * y + smoothing / 3) * math.log(math.exp(x) / total)
            for x, y, w in zip(row, target, weights, strict=True)
        )
        found.append(-sum(terms))
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("class_weights", "vector"),
    [
        ("balanced", [12 / (3 * 6), 12 / (3 * 4), 12 / (3 * 2)]),
        ({"cat": 2.5, "ant": 0.0}, [0.0, 1.0, 2.5]),
        (None, [1.0, 1.0, 1.0]),
    ],
)
def test_the_weighted_sum(class_weights, vector, smoothing) -> None:
    hard = torch.tensor([0, 2, 1, 2])
    soft = torch.tensor([[0.3, 0.7, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], dtype=torch.float64)
    for labels, targets in ((hard, torch.eye(3)[hard].tolist()), (soft, soft.tolist())):
        expected = written_out(targets, vector, smoothing)
        assert value(labels, class_weights=class_weights, label_smoothing=smoothing) == pytest.approx(
            expected, rel=1e-6
        )


def test_balanced_weights_have_the_mean_1_over_the_images() -> None:
    weights = class_weight_vector("balanced", CONTEXT)
    assert float(weights.repeat_interleave(CONTEXT.class_counts).mean()) == pytest.approx(1.0)


def test_what_is_refused() -> None:
    with pytest.raises(Refused, match=r"class_weights: there is no class 'bea'; did you mean bee"):
        class_weight_vector({"bea": 2.0}, CONTEXT)
    with pytest.raises(Refused, match=r"class_weights: 'bee' has weight -1; give 0 or more"):
        class_weight_vector({"bee": -1.0}, CONTEXT)
    for vector, field in ((class_weight_vector, "class_weights"), (positive_weight_vector, "positive_weights")):
        with pytest.raises(
            Refused, match=rf"^{field} names no class; name some, such as \{{{CLASSES[0]}: 2\}}, or leave"
        ):
            vector({}, CONTEXT)
    few = TermContext({}, {}, num_classes=3, num_samples=2, classes=CLASSES, class_counts=torch.tensor([1, 0, 1]))
    with pytest.raises(Refused, match=r"balanced, but class 'bee' has no training image"):
        class_weight_vector("balanced", few)

"""Distillation of standardised logits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from kdcore.errors import Refused
from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_same_classes
from kdcore.terms.logits import LogitTerm, kd
from kdcore.terms.precision import full_precision

_LEAST_DEVIATION = 0.01


@full_precision
def standardise(logits: Tensor) -> Tensor:
    """Divide each row less its mean by its standard deviation (of K - 1 degrees of freedom): [B,K].

    By 0.01 where that is less (1e-7 in the published form): so constant logits stay 0, and those of a classifier that
    starts at zero have no gradient of 10^6.
    """
    variance = logits.var(dim=1, keepdim=True).clamp_min(_LEAST_DEVIATION**2)
    return (logits - logits.mean(dim=1, keepdim=True)) / variance.sqrt()


def require_scale(num_classes: int, remedy: str) -> None:
    """Refuse two classes: whatever their logits, the standardised ones are these two numbers."""
    if num_classes == 2:
        raise Refused(f"with 2 classes, standardised logits are always 0.71 and -0.71, so nothing is learnt; {remedy}")


@full_precision
def lskd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return `kd` of `standardise`d logits: [B] nats.

    student_logits, teacher_logits [B,K]. 0 when student equals teacher, and whenever it equals a * teacher + b, a > 0
    (except for rows with a deviation below 0.01).
    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427.
    """
    require_same_classes(student_logits, teacher_logits)
    return kd(standardise(student_logits), standardise(teacher_logits), temperature)


class LSKD(LogitTerm):
    """Distillation of standardised logits (LSKD): `lskd`, a temperature on each row's own scale.

    Published for CIFAR-100: temperature 2 and weight 9 for most pairs, with a cross-entropy of weight 0.1. It differs
    from the published form where logits deviate by less than 0.01, as those of a classifier that starts at zero do. It
    is refused for two classes: standardised, two logits are always the same two numbers.
    """

    term: Literal["lskd"] = "lskd"
    temperature: float = Field(gt=0)
    """Temperature of both networks, in standard deviations of a row of logits."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term. Refused for two classes."""
        require_scale(context.num_classes, "take kd or ttm")
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B] nats."""
        return lskd(inputs.student_logits, inputs.teacher_logits, self.temperature)

"""MLKD: logits compared sample by sample, class by class and batch by batch, at several temperatures."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_batch, require_same_classes
from kdcore.terms.logits import LogitTerm, kd
from kdcore.terms.lskd import lskd, require_scale
from kdcore.terms.precision import full_precision


@full_precision
def class_relations(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return |P^T P - Q^T Q|_F^2 / K for every sample: [B], no unit.

    P, Q [B,K] are softmax(logits / temperature) of teacher and student, so that P^T P [K,K] says which classes are
    probable together. Every sample carries the batch's one value. 0 when student equals teacher.
    """
    p, q = (F.softmax(logits / temperature, dim=1) for logits in (teacher_logits, student_logits))
    value = (p.T @ p - q.T @ q).square().sum() / p.shape[1]
    return value.expand(len(p))


@full_precision
def batch_relations(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return row b of (P P^T - Q Q^T)^2, summed: [B], no unit.

    P, Q as in `class_relations`; the mean over the batch is the squared Frobenius norm over B. 0 when student equals
    teacher.
    """
    p, q = (F.softmax(logits / temperature, dim=1) for logits in (teacher_logits, student_logits))
    return (p @ p.T - q @ q.T).square().sum(dim=1)


def share_below_median(values: Tensor) -> Tensor:
    """Return the share of the values [N] that are not above their median: a half, except with ties or odd N."""
    return (values <= values.quantile(0.5)).to(values.dtype).mean()


@full_precision
def mlkd(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: tuple[float, ...], standardised: bool = False
) -> Tensor:
    """Return the sum over temperatures of `kd`, `batch_relations` and `class_relations`, each about halved: [B].

    The first two are multiplied by the share of samples whose teacher confidence is not above the median, the last by
    the share of classes, by their probabilities summed over the batch. standardised: `lskd` in place of `kd`. Logits
    [B,K]. 0 when student equals teacher.
    """
    require_same_classes(student_logits, teacher_logits)
    require_batch(student_logits)
    logits, probabilities = (student_logits, teacher_logits), F.softmax(teacher_logits, dim=1)
    of_samples = share_below_median(probabilities.amax(dim=1))
    of_classes = share_below_median(probabilities.sum(dim=0))
    by_samples = lskd if standardised else kd
    return torch.stack(
        [
            of_samples * (by_samples(*logits, temperature) + batch_relations(*logits, temperature))
            + of_classes * class_relations(*logits, temperature)
            for temperature in temperatures
        ]
    ).sum(dim=0)


class MLKD(LogitTerm):
    """Multi-level logit distillation (MLKD): `mlkd`, samples, classes and batches at several temperatures.

    Source: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, as in their code: it multiplies the batch's
    mean by the share of samples (or classes) below the median confidence, where the paper leaves the others out. The
    authors compare a second, strongly augmented view of every sample in the same step; here the loss is taken of the
    views that the recipe shows, one per sample.
    """

    term: Literal["mlkd"] = "mlkd"
    temperatures: tuple[float, ...] = Field(default=(2.0, 3.0, 4.0, 5.0, 6.0), min_length=1)
    """Temperatures of both networks, each with a part of its own; one that is named twice counts twice."""
    standardise: bool = False
    """Whether the part by samples compares standardised logits (MLKD + LSKD); not of two classes."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term. Refused for standardised logits of two classes."""
        if self.standardise:
            require_scale(context.num_classes, "set standardise: false")
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the sum over temperatures and levels: [B]."""
        return mlkd(inputs.student_logits, inputs.teacher_logits, self.temperatures, self.standardise)

"""DIST: correlations with the teacher along classes and along samples."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.errors import Refused
from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_batch, require_same_classes
from kdcore.terms.logits import LogitTerm
from kdcore.terms.precision import full_precision

_EPSILON = 1e-8  # of the published form; it mutes classes whose probability hardly varies over the batch
_LEAST_DEVIATION = 0.01  # of the student's logits / temperature; see `dist`


def pearson(a: Tensor, b: Tensor, dim: int, least: Tensor) -> Tensor:
    """Return Pearson's correlation of a and b along dim; 0 where either is constant.

    least: the lower bound of the length of a once its mean is subtracted.
    """
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    return (a * b).sum(dim) / (torch.maximum(a.norm(dim=dim), least) * b.norm(dim=dim) + _EPSILON)


@full_precision
def dist(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, inter_weight: float, intra_weight: float
) -> Tensor:
    """Return temperature^2 * (inter_weight * (1 - r_b) + intra_weight * (1 - mean_k r_k)): [B], no unit.

    r_b correlates the two softmax(logits / temperature) over the classes of sample b, r_k over the samples of class k.
    student_logits, teacher_logits [B,K]. 0 (to rounding and epsilon) when student equals teacher. Each sample carries
    the whole column part, so that the mean over the batch is the published value.
    Where the student's probabilities vary less than those of logits with a standard deviation of 0.01 * temperature
    would, they are divided by the length that such logits would give, not by their own: the published form has no such
    bound, and its gradient is 10^6 for a classifier that starts at zero. All other values are as published.
    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536.
    """
    require_same_classes(student_logits, teacher_logits)
    require_batch(student_logits)
    p, q = F.softmax(teacher_logits / temperature, dim=1), F.softmax(student_logits / temperature, dim=1)
    slope = (q * (1 - q)).detach()  # the derivative of each probability by its own logit
    by_rows, by_columns = (pearson(q, p, dim, _LEAST_DEVIATION * slope.norm(dim=dim)) for dim in (1, 0))
    inter, intra = 1 - by_rows, 1 - by_columns.mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


class DIST(LogitTerm):
    """DIST, correlation with the teacher's predictions: `dist`, with a cross-entropy of weight 1.

    Published: weight 2, temperature 4 on CIFAR-100, temperature 1 on ImageNet. The column part is taken over the
    micro-batch, which is the reference batch: of one size on any number of ranks. Differs from the published form where
    the student's logits hardly vary (`dist`), as those of a classifier that starts at zero do. With two classes the
    row part is 0 or 2, without a gradient, wherever the student's logits do vary: only the column part teaches, and
    without it the term is refused.
    """

    term: Literal["dist"] = "dist"
    temperature: float = Field(gt=0)
    """Temperature of both networks; the loss is multiplied by its square."""
    inter_weight: float = Field(default=1.0, ge=0)
    """Factor of the part that correlates each sample's classes (the paper's beta)."""
    intra_weight: float = Field(default=1.0, ge=0)
    """Factor of the part that correlates each class's samples (the paper's gamma)."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term. Refused for two classes without the column part."""
        if context.num_classes == 2 and not self.intra_weight:
            raise Refused(
                "with 2 classes, a row's correlation is 1 or -1 as soon as its logits differ, so nothing is learnt; "
                "set intra_weight, or take kd"
            )
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the weighted sum of both parts: [B]."""
        return dist(
            inputs.student_logits, inputs.teacher_logits, self.temperature, self.inter_weight, self.intra_weight
        )

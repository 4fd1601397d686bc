"""Transformed teacher matching: temperature on the teacher only (TTM), weighted by its flatness (WTTM).

Source: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv 2402.11148.
gamma is the paper's exponent 1/temperature. Neither loss has a temperature on the student or a factor temperature^2,
and both are added to a cross-entropy of weight 1.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore.terms.base import TermInputs
from kdcore.terms.checks import require_same_classes
from kdcore.terms.logits import LogitTerm, kl_divergence
from kdcore.terms.precision import full_precision


@full_precision
def ttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """Return D(p^gamma / sum_j p_j^gamma || q), p = softmax(teacher), q = softmax(student): [B] nats.

    student_logits, teacher_logits [B,K]. The power transform of p is softmax(gamma * teacher), which is how it is
    computed. 0 when student equals gamma * teacher; when student equals teacher, 0 only for gamma = 1.
    Source: the paper's L_TTM, whose weight (beta) is the term's.
    """
    require_same_classes(student_logits, teacher_logits)
    log_p = F.log_softmax(gamma * teacher_logits, dim=1)
    return kl_divergence(log_p, F.log_softmax(student_logits, dim=1))


@full_precision
@torch.no_grad()
def power_sum(teacher_logits: Tensor, gamma: float) -> Tensor:
    """Return U_gamma(p) = sum_j p_j^gamma with p = softmax(teacher), at temperature 1: [B], in [1, K^(1 - gamma)].

    1 for a one-hot p, largest for a uniform one. Computed in log-space, since the power of a softmax underflows in half
    precision, and of logits less their maximum: both log-sums are then of the order of log K, however large the logits,
    and their difference keeps its digits. Never differentiated: the derivative of p^gamma is infinite at p = 0.
    """
    below = teacher_logits - teacher_logits.amax(dim=1, keepdim=True)
    return (torch.logsumexp(gamma * below, 1) - gamma * torch.logsumexp(below, 1)).exp()


def wttm(student_logits: Tensor, teacher_logits: Tensor, gamma: float) -> Tensor:
    """Return `power_sum` * `ttm`, sample by sample: [B] nats.

    Value when student equals teacher: as for `ttm`, times U. The batch's loss is the mean of the products, not the
    product of the means. Source: the paper's L_WTTM.
    """
    return power_sum(teacher_logits, gamma) * ttm(student_logits, teacher_logits, gamma)


class TTM(LogitTerm):
    """Transformed teacher matching (TTM): `ttm`, with a cross-entropy of weight 1.

    gamma and weight belong together and to the pair of networks: CIFAR-100 has 0.1 to 0.4, and 7 to 101.
    """

    term: Literal["ttm"] = "ttm"
    gamma: float = Field(gt=0, le=1)
    """Exponent of the teacher's probabilities: 1/temperature, of the teacher alone."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B] nats."""
        return ttm(inputs.student_logits, inputs.teacher_logits, self.gamma)


class WTTM(LogitTerm):
    """Weighted transformed teacher matching (WTTM): `wttm`, with a cross-entropy of weight 1.

    ImageNet: gamma 0.8, weight 1.6 for ResNet-18; 0.7 and 3.5 for ResNet-50 to MobileNetV1. A weight must not be
    carried over from TTM: power sums at gamma 0.1 are of the order of 25.
    """

    term: Literal["wttm"] = "wttm"
    gamma: float = Field(gt=0, le=1)
    """Exponent of the teacher's probabilities: 1/temperature, of the teacher alone."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B] nats."""
        return wttm(inputs.student_logits, inputs.teacher_logits, self.gamma)

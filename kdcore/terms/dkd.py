"""Losses that treat the labelled class (the target) and the others separately: DKD and NKD."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_hard_labels, require_other_classes, require_same_classes
from kdcore.terms.logits import LogitTerm, kl_divergence
from kdcore.terms.lskd import require_scale, standardise
from kdcore.terms.precision import full_precision


def without_target(values: Tensor, labels: Tensor) -> Tensor:
    """Leave the labelled class of each row [B,K] out: [B,K-1]. labels [B]."""
    others = torch.arange(values.shape[1] - 1, device=values.device).expand(len(values), -1)
    return values.gather(1, others + (others >= labels[:, None]))


def target_and_rest(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithms of (p_target, 1 - p_target) with p = softmax(logits): [B,2].

    The second is a log-sum over the other classes: 1 - p_target itself loses every digit for a confident teacher.
    """
    log_p = F.log_softmax(logits, dim=1)
    target = log_p.gather(1, labels[:, None])
    return torch.cat([target, without_target(log_p, labels).logsumexp(dim=1, keepdim=True)], dim=1)


def decoupled(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return DKD's two parts, each times temperature^2: [B] and [B] nats.

    The first is the divergence of (target, rest), the second that of the distributions over only the other classes.
    Hinton's `kd` is first + (1 - teacher's target probability) * second.
    """
    require_hard_labels(labels)
    require_same_classes(student_logits, teacher_logits)
    s, t = student_logits / temperature, teacher_logits / temperature
    target = kl_divergence(target_and_rest(t, labels), target_and_rest(s, labels))
    log_p, log_q = (F.log_softmax(without_target(logits, labels), dim=1) for logits in (t, s))
    return temperature**2 * target, temperature**2 * kl_divergence(log_p, log_q)


@full_precision
def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    target_weight: float,
    non_target_weight: float,
) -> Tensor:
    """Return target_weight * TCKD + non_target_weight * NCKD, the parts of `decoupled`: [B] nats.

    student_logits, teacher_logits [B,K]; labels [B]. 0 when student equals teacher.
    Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679, equation 7.
    """
    target, non_target = decoupled(student_logits, teacher_logits, labels, temperature)
    return target_weight * target + non_target_weight * non_target


@full_precision
def nkd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, non_target_weight: float
) -> Tensor:
    """Return -p_t log q_t - non_target_weight * temperature^2 * sum_k p^_k log q^_k: [B] nats.

    p, q = softmax of teacher and student; t the label; p^, q^ = softmax of the other classes' logits / temperature.
    student_logits, teacher_logits [B,K]; labels [B]. When student equals teacher:
    -p_t log p_t + non_target_weight * temperature^2 * (entropy of p^); the second part is at its least there.
    Source: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
    Loss and Customized Soft Labels", ICCV 2023, arXiv 2303.13005.
    """
    require_hard_labels(labels)
    require_same_classes(student_logits, teacher_logits)
    p, log_q = F.softmax(teacher_logits, dim=1), F.log_softmax(student_logits, dim=1)
    target = -(p * log_q).gather(1, labels[:, None]).squeeze(1)
    other_p = F.softmax(without_target(teacher_logits, labels) / temperature, dim=1)
    other_log_q = F.log_softmax(without_target(student_logits, labels) / temperature, dim=1)
    return target - non_target_weight * temperature**2 * (other_p * other_log_q).sum(dim=1)


class HardLabelTerm(LogitTerm):
    """Base of the terms that read logits and [B] class numbers."""

    def needs(self) -> Needs:
        """Return what such a term reads: the teacher's logits and class numbers."""
        return Needs(teacher_logits=True, hard_labels=True)


class DKD(HardLabelTerm):
    """Decoupled knowledge distillation (DKD): `dkd`, of the logits or of standardised ones.

    Published: CIFAR-100 temperature 4, non_target_weight 8 (6 or 2 for some pairs), warmup_epochs 20; ImageNet
    temperature 1, non_target_weight 0.5 (ResNet-34 to 18) or 2 (ResNet-50 to MobileNetV1), no warm-up: the authors'
    WARMUP of 1 counts epochs from 1, so it is none. With two classes only the part on the label teaches, and without it
    the term is refused.
    """

    term: Literal["dkd"] = "dkd"
    temperature: float = Field(gt=0)
    """Temperature of both networks."""
    target_weight: float = Field(default=1.0, ge=0)
    """Factor of the part on the label's probability (the paper's alpha)."""
    non_target_weight: float = Field(ge=0)
    """Factor of the part on the other classes' distribution (the paper's beta)."""
    standardise: bool = False
    """Whether both networks' logits are standardised first, row by row (DKD + LSKD); not of two classes."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term. Refused for two classes without the part on the label, or with standardised logits."""
        if not self.target_weight:
            require_other_classes(context.num_classes, "set target_weight, or take kd")
        if self.standardise:
            require_scale(context.num_classes, "set standardise: false")
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the weighted sum of both parts: [B] nats."""
        logits = inputs.student_logits, inputs.teacher_logits
        if self.standardise:
            logits = standardise(logits[0]), standardise(logits[1])
        return dkd(*logits, inputs.labels, self.temperature, self.target_weight, self.non_target_weight)


class NKD(HardLabelTerm):
    """Normalised knowledge distillation (NKD): `nkd`, the label and the distribution over the other classes.

    Published for ImageNet: temperature 1, non_target_weight 1 for DeiT, 1.5 for CNNs.
    """

    term: Literal["nkd"] = "nkd"
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both networks in the part on the other classes."""
    non_target_weight: float = Field(ge=0)
    """Factor of the part on the other classes (the paper's gamma)."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the sum of both parts: [B] nats."""
        return nkd(
            inputs.student_logits, inputs.teacher_logits, inputs.labels, self.temperature, self.non_target_weight
        )

"""Cross-entropy, and knowledge distillation as Hinton et al. defined it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore.batch import Needs
from kdcore.terms.base import Term, TermInputs
from kdcore.terms.checks import require_same_classes
from kdcore.terms.precision import full_precision


@full_precision
def cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return H(y, q) = -sum_k y_k log q_k with q = softmax(logits): [B] nats.

    logits [B,K]; labels [B] int64 or soft [B,K]. Smoothing mixes y with the uniform distribution. Least value: the
    entropy of y (0 for hard labels).
    """
    if labels.ndim == 2:
        labels = labels.to(logits.dtype)
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return D(p || q) = sum_k p_k (log p_k - log q_k): [B] nats, from log-probabilities [B,K]; 0 where p_k is 0."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), torch.zeros_like(p)).sum(dim=1)


@full_precision
def kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 * D(softmax(teacher / temperature) || softmax(student / temperature)): [B] nats.

    student_logits, teacher_logits [B,K]. 0 when student equals teacher.
    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    require_same_classes(student_logits, teacher_logits)
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    return temperature**2 * kl_divergence(log_p, log_q)


class CrossEntropy(Term):
    """The labels: `cross_entropy` of the student with them."""

    term: Literal["ce"] = "ce"
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the uniform distribution that is mixed into the labels."""

    def needs(self) -> Needs:
        """Return what this term reads: the labels."""
        return Needs(labels=True)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the cross-entropy: [B] nats."""
        return cross_entropy(inputs.student_logits, inputs.labels, self.label_smoothing)


class LogitTerm(Term):
    """Base of the terms that read both networks' logits."""

    def needs(self) -> Needs:
        """Return what such a term reads: the teacher's logits."""
        return Needs(teacher_logits=True)


class KD(LogitTerm):
    """Hinton's knowledge distillation: `kd`. The common CIFAR setting is ce 0.1 + kd 0.9 at temperature 4."""

    term: Literal["kd"] = "kd"
    temperature: float = Field(gt=0)
    """Temperature of both networks; the loss is multiplied by its square."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B] nats."""
        return kd(inputs.student_logits, inputs.teacher_logits, self.temperature)

"""Cross-entropy, and knowledge distillation as Hinton et al. defined it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.terms.base import Stateless, Term, TermContext, TermInputs
from kdcore.terms.checks import require_same_classes
from kdcore.terms.class_weights import ClassWeights, class_weight_vector
from kdcore.terms.precision import full_precision


@full_precision
def cross_entropy(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Return H(y, q) = -sum_k w_k y_k log q_k with q = softmax(logits): [B] nats.

    logits [B,K]; labels [B] int64 or soft [B,K]; class_weights w [K], 1 where not given. Smoothing mixes y with the
    uniform distribution. Least value without weights: the entropy of y (0 for hard labels).
    """
    if labels.ndim == 2:
        labels = labels.to(logits.dtype)
    weights = None if class_weights is None else class_weights.to(logits)
    return F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=label_smoothing)


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
    class_weights: ClassWeights | None = None
    """What the loss of each class's images is multiplied by: `balanced`, which is N / (K n) for a class of n of the N
    training images of K classes, or weights by name, as in {daisy: 2.0}; a class that is not named weighs 1. The mean
    is taken over images, not over weights as in torch, so that it means the same on any number of workers. Not given:
    every class weighs 1."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the module that computes the loss."""
        if self.class_weights is None:
            return Stateless(self)
        return WeightedCrossEntropy(self, class_weight_vector(self.class_weights, context))

    def needs(self) -> Needs:
        """Return what this term reads: the labels."""
        return Needs(labels=True)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the cross-entropy: [B] nats."""
        return cross_entropy(inputs.student_logits, inputs.labels, self.label_smoothing)


class WeightedCrossEntropy(nn.Module):
    """`cross_entropy` with a weight for each class [K], which a checkpoint need not hold."""

    class_weights: Tensor

    def __init__(self, config: CrossEntropy, class_weights: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the cross-entropy: [B] nats."""
        return cross_entropy(inputs.student_logits, inputs.labels, self.config.label_smoothing, self.class_weights)


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

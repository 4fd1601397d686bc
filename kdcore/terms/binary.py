"""Losses for images with several labels: every class is a yes or no of its own, a sigmoid in place of the softmax."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs, soft_labels
from kdcore.terms.base import Term, TermContext, TermInputs
from kdcore.terms.checks import require_same_classes
from kdcore.terms.class_weights import ClassWeights, class_weight_vector, positive_weight_vector
from kdcore.terms.logits import LogitTerm
from kdcore.terms.precision import full_precision


@full_precision
def binary_cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None = None, positive_weights: Tensor | None = None
) -> Tensor:
    """Return -(1/K) sum_k w_k (p_k y_k log s_k + (1 - y_k) log(1 - s_k)) with s = sigmoid(logits): [B] nats.

    logits [B,K]; labels y [B,K] in [0, 1], or class numbers [B] int64, each for that class only; class_weights w and
    positive_weights p [K], 1 where not given. Its mean over the batch is torch's `BCEWithLogitsLoss`. Least value
    without weights: the mean over classes of the entropy of y (0 for labels of 0 and 1).
    """
    targets = soft_labels(labels, logits.shape[1]).to(logits.dtype)
    weights, positive = (None if one is None else one.to(logits) for one in (class_weights, positive_weights))
    values = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="none", pos_weight=positive)
    return values.mean(dim=1)


def binary_kl_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return D(p || q) = p log(p/q) + (1 - p) log((1 - p)/(1 - q)) of every class, p and q by sigmoids: [B,K] nats."""
    p = teacher_logits.sigmoid()
    of_yes = F.logsigmoid(teacher_logits) - F.logsigmoid(student_logits)
    of_no = F.logsigmoid(-teacher_logits) - F.logsigmoid(-student_logits)
    return p * of_yes + (1 - p) * of_no


@full_precision
def binary_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 / K * sum_k D(sigmoid(teacher_k / temperature) || sigmoid(student_k / temperature)).

    [B] nats; student_logits, teacher_logits [B,K]. 0 when student equals teacher.
    """
    require_same_classes(student_logits, teacher_logits)
    divergence = binary_kl_divergence(teacher_logits / temperature, student_logits / temperature)
    return temperature**2 * divergence.mean(dim=1)


class BinaryCrossEntropy(Term):
    """The labels, each class a yes or no: `binary_cross_entropy` of the student with them.

    With images of one label it is the loss of Wightman et al., "ResNet strikes back", arXiv 2110.00476, section 2.
    """

    term: Literal["bce"] = "bce"
    class_weights: ClassWeights | None = None
    """What the loss of each class is multiplied by: `balanced`, which is N / (K n) for a class that n of the N training
    images show, K classes in all, or weights by name, as in {dog: 2.0}; a class that is not named weighs 1. Not given:
    every class weighs 1."""
    positive_weights: ClassWeights | None = None
    """What the loss of each class is multiplied by on images that show it, torch's pos_weight: `balanced`, which is
    (N - n) / n for a class that n of the N training images show, so that yes and no weigh the same, or weights by name.
    Not given: 1."""
    multi_label: ClassVar[bool] = True

    def needs(self) -> Needs:
        """Return what this term reads: the labels."""
        return Needs(labels=True)

    def build(self, context: TermContext) -> nn.Module:
        """Build the module that computes the loss."""
        return WeightedBinaryCrossEntropy(
            None if self.class_weights is None else class_weight_vector(self.class_weights, context),
            None if self.positive_weights is None else positive_weight_vector(self.positive_weights, context),
        )


class WeightedBinaryCrossEntropy(nn.Module):
    """`binary_cross_entropy` with weights for each class [K] or none, which a checkpoint need not hold."""

    class_weights: Tensor | None
    positive_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None, positive_weights: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("positive_weights", positive_weights, persistent=False)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the binary cross-entropy: [B] nats."""
        return binary_cross_entropy(inputs.student_logits, inputs.labels, self.class_weights, self.positive_weights)


class BinaryKD(LogitTerm):
    """Knowledge distillation for several labels per image: `binary_kd`, each class against all others.

    Source: Yang, Xie, Zong, Feng, Niu, Sugiyama, Huang, "Multi-Label Knowledge Distillation", ICCV 2023: its
    multi-label logits distillation (MLD), which reduces the classes to binary problems one-versus-all, with their sum;
    here it is their mean, as of `bce`, so that weights mean the same whatever the number of classes, and Hinton's
    temperature.
    """

    term: Literal["binary_kd"] = "binary_kd"
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both networks; the loss is multiplied by its square."""
    multi_label: ClassVar[bool] = True

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B] nats."""
        return binary_kd(inputs.student_logits, inputs.teacher_logits, self.temperature)

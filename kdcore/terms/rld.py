"""RLD: the teacher's confidence and class order, as far as the labels do not contradict them."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_hard_labels, require_other_classes, require_same_classes
from kdcore.terms.dkd import HardLabelTerm, target_and_rest
from kdcore.terms.logits import kl_divergence
from kdcore.terms.precision import full_precision

_HIDDEN = -1e9  # a logit whose class has no part in a distribution; finite, so that all classes may be hidden


@full_precision
def sample_confidence(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 * D((max p, 1 - max p) || (q_label, 1 - q_label)): [B] nats.

    p and q are the teacher's and the student's softmax(logits / temperature). The teacher's highest probability stands
    for the label, whichever class has it. 0 when student equals teacher and the teacher is right.
    """
    require_hard_labels(labels)
    require_same_classes(student_logits, teacher_logits)
    s, t = student_logits / temperature, teacher_logits / temperature
    return temperature**2 * kl_divergence(target_and_rest(t, t.argmax(dim=1)), target_and_rest(s, labels))


@full_precision
def masked_correlation(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return temperature^2 * D(p || q) over the classes whose teacher logit is below that of the label: [B] nats.

    p and q are softmax(logits / temperature) of only those classes. 0 when student equals teacher, and where there is
    at most one such class.
    """
    require_hard_labels(labels)
    require_same_classes(student_logits, teacher_logits)
    hidden = teacher_logits >= teacher_logits.gather(1, labels[:, None])
    log_p, log_q = (
        F.log_softmax((logits / temperature).masked_fill(hidden, _HIDDEN), dim=1)
        for logits in (teacher_logits, student_logits)
    )
    return temperature**2 * kl_divergence(log_p, log_q)


class RLD(HardLabelTerm):
    """Refined logit distillation (RLD): the teacher's confidence and class order, corrected by the labels.

    confidence_weight * `sample_confidence` + correlation_weight * `masked_correlation`.

    Source: Sun et al., "Knowledge Distillation with Refined Logits", arXiv 2408.07703, and the authors' code.
    Published: weights 1 and 8, temperature 4 and warmup_epochs 20 on CIFAR-100; correlation_weight 0.5 (ResNet-34 to
    18) or 2 (ResNet-50 to MobileNetV1) and temperature 1 on ImageNet. With two classes only the first part teaches, and
    without it the term is refused.
    """

    term: Literal["rld"] = "rld"
    temperature: float = Field(gt=0)
    """Temperature of both networks in the part on the classes below the label."""
    confidence_temperature: float = Field(default=1.0, gt=0)
    """Temperature of both networks in the part on the sample's confidence."""
    confidence_weight: float = Field(default=1.0, ge=0)
    """Factor of the part on the sample's confidence (the paper's alpha)."""
    correlation_weight: float = Field(ge=0)
    """Factor of the part on the classes below the label (the paper's beta)."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term. Refused for two classes without the part on the confidence."""
        if not self.confidence_weight:
            require_other_classes(context.num_classes, "set confidence_weight, or take kd")
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the weighted sum of both parts: [B] nats."""
        logits = inputs.student_logits, inputs.teacher_logits, inputs.labels
        confidence = sample_confidence(*logits, self.confidence_temperature)
        return self.confidence_weight * confidence + self.correlation_weight * masked_correlation(
            *logits, self.temperature
        )

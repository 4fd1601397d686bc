"""Norm and direction: features as long as the teacher's and pointed at their class (the "++" of KD++ and DKD++)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import Term, TermContext, TermInputs
from kdcore.terms.checks import require_hard_labels, require_same_shape
from kdcore.terms.precision import full_precision


@full_precision
def nd(student_features: Tensor, teacher_features: Tensor, class_means: Tensor, labels: Tensor) -> Tensor:
    """Return 1 - <student, e_label> / max(|student|, |teacher|): [B], no unit.

    student_features, teacher_features [B,D]; class_means [K,D] of the teacher over the training set, e_c their
    directions; labels [B]. When student equals teacher: 1 - the cosine between the teacher and its class mean. 0 for a
    student on the class's direction and no shorter than the teacher.
    Source: Wang et al., "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
    arXiv 2305.17007.
    """
    require_hard_labels(labels)
    require_same_shape(student_features, teacher_features)
    directions = F.normalize(class_means, dim=1)[labels]
    length = torch.maximum(student_features.norm(dim=1), teacher_features.norm(dim=1))
    return 1 - (student_features * directions).sum(dim=1) / length.clamp_min(1e-12)


class ND(Term):
    """Norm and direction (ND): `nd` on the classifiers' inputs, with `ce` and `kd` (KD++) or `dkd` (DKD++).

    Published weights of ce / kd / nd: ResNet-56 to 20 1 / 1 / 2, ResNet-32x4 to 8x4 1 / 3.5 / 2, both at temperature 4.
    A student of another width passes through batch norm, dropout and a linear layer, whose bias begins at 0.
    """

    term: Literal["nd"] = "nd"
    student_tap: str = "classifier_input"
    """Tap of the student that gives one vector a sample."""
    teacher_tap: str = "classifier_input"
    """Tap of the teacher that gives one vector a sample, and whose class means are taken over the training set."""

    def needs(self) -> Needs:
        """Return what this term reads: one vector of each network, class numbers, and the teacher's class means."""
        return Needs(
            student_taps=frozenset({self.student_tap}),
            teacher_taps=frozenset({self.teacher_tap}),
            class_means=frozenset({self.teacher_tap}),
            hard_labels=True,
        )

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its adapter and class means."""
        return NDModule(self, context)


class NDModule(nn.Module):
    """The adapter and the class means of `ND`."""

    class_means: Tensor

    def __init__(self, config: ND, context: TermContext) -> None:
        super().__init__()
        self.config = config
        student_shape, teacher_shape = (
            context.student_shapes[config.student_tap],
            context.teacher_shapes[config.teacher_tap],
        )
        if len(student_shape) != 1 or len(teacher_shape) != 1:
            raise Refused(
                f"nd compares vectors, but tap {config.student_tap!r} has shape {list(student_shape)} and "
                f"{config.teacher_tap!r} {list(teacher_shape)}; take classifier_input"
            )
        self.register_buffer("class_means", _checked_means(context, config.teacher_tap))
        (s,), (t,) = student_shape, teacher_shape
        self.adapter = nn.Identity() if s == t else adapter(s, t)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B]."""
        student = self.adapter(inputs.student_features[self.config.student_tap])
        return nd(student, inputs.teacher.features[self.config.teacher_tap], self.class_means, inputs.labels)


def adapter(student_width: int, teacher_width: int) -> nn.Module:
    """Build the layers from a student's vector to the teacher's width; their bias begins at 0, as the authors'."""
    linear = nn.Linear(student_width, teacher_width)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(student_width), nn.Dropout(0.5), linear)


def _checked_means(context: TermContext, tap: str) -> Tensor:
    means = context.class_means[tap].float()
    if len(means) != context.num_classes:
        raise Refused(f"{len(means)} class means of tap {tap!r} for {context.num_classes} classes; compute them again")
    empty = (~(means.norm(dim=1) > 0)).nonzero().flatten().tolist()  # a mean of no images is not a number
    if empty:
        names = [context.classes[number] if context.classes else number for number in empty[:6]]
        raise Refused(
            f"classes {names} have no mean at tap {tap!r}, or one of zeros: the training set lacks images of them; add "
            "some, or leave nd out"
        )
    return means

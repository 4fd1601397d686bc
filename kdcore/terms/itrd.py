"""ITRD: correlation and mutual information between the two networks' representations of a batch.

Source: Miles, Lopez-Rodriguez, Mikolajczyk, "Information Theoretic Representation Distillation", BMVC 2022, arXiv
2112.00459, and the authors' code. Both parts couple the samples: the micro-batch is the reference batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import Term, TermContext, TermInputs
from kdcore.terms.checks import require_batch, require_same_shape
from kdcore.terms.precision import at_least_float32, embed, full_precision

_LEAST_DEVIATION = 1e-6  # a feature that is constant over the batch is taken as uncorrelated, not divided by 0
_LEAST_TRACE = 1e-6  # a vector of length 1 adds 1


def over_batch(features: Tensor) -> Tensor:
    """Standardise each feature over the batch [B,D], with B - 1 degrees of freedom."""
    variance = features.var(dim=0).clamp_min(_LEAST_DEVIATION**2)
    return (features - features.mean(dim=0)) / variance.sqrt()


@full_precision
def correlation(student_features: Tensor, teacher_features: Tensor, alpha: float) -> Tensor:
    """Return log2 sum_d |C_d - 1|^(2 alpha) for every sample: [B], bits.

    C_d = 1/B sum_b of the standardised features' products: the correlation of feature d, times (B - 1)/B. Both [B,D].
    Every sample carries the batch's one value, so that the mean over the batch is the published one. When student
    equals teacher: log2 D - 2 alpha log2 B.
    """
    require_same_shape(student_features, teacher_features)
    require_batch(student_features)
    products = over_batch(student_features) * over_batch(teacher_features)
    differences = (products.mean(dim=0) - 1).square()
    return torch.log2(differences.pow(alpha).sum()).expand(len(student_features))


@full_precision
def mutual_information(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return row b of B * sum_j (G_student^2 - G_joint^2): [B], no unit.

    G_student [B,B] holds the cosines of the student's features, G_joint their products with the teacher's cosines, and
    each is divided by its trace. Student [B,D] and teacher [B,D'] may differ in width. Never negative; 0 where the
    teacher's features are all parallel.
    """
    require_batch(student_features)
    student, teacher = (
        normalised @ normalised.T
        for normalised in (F.normalize(f, dim=1) for f in (student_features, teacher_features))
    )
    # Features that are 0 have no cosine with anything; they are not divided by 0.
    student, joint = (matrix / matrix.trace().clamp_min(_LEAST_TRACE) for matrix in (student, student * teacher))
    return len(student) * (student.square() - joint.square()).sum(dim=1)


class ITRD(Term):
    """Information-theoretic representation distillation (ITRD) of the classifiers' inputs.

    correlation_weight * `correlation` + mutual_weight * `mutual_information`.

    The student's features pass through one linear layer of the teacher's width: in the first part always, in the second
    where the widths differ, as in the authors' code. The published weight of the term is 1, with a cross-entropy of
    weight 1 (and `wttm`, in the tables of the TTM paper).
    """

    term: Literal["itrd"] = "itrd"
    student_tap: str = "classifier_input"
    """Tap of the student that gives one vector a sample."""
    teacher_tap: str = "classifier_input"
    """Tap of the teacher that gives one vector a sample."""
    alpha: float = Field(ge=1)
    """Order of Rényi's entropy in the correlation part. Published: 1.01 for networks of one family, 1.5 for others."""
    correlation_weight: float = Field(default=2.0, ge=0)
    """Factor of the correlation part."""
    mutual_weight: float = Field(default=1.0, ge=0)
    """Factor of the mutual information part. Published: 1, and 0 for three of the pairs of different families."""

    def needs(self) -> Needs:
        """Return what this term reads: one vector of each network."""
        return Needs(student_taps=frozenset({self.student_tap}), teacher_taps=frozenset({self.teacher_tap}))

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its linear layer."""
        return ITRDModule(self, context)


class ITRDModule(nn.Module):
    """The linear layer of `ITRD`, from the student's width to the teacher's."""

    def __init__(self, config: ITRD, context: TermContext) -> None:
        super().__init__()
        self.config = config
        shapes = context.student_shapes[config.student_tap], context.teacher_shapes[config.teacher_tap]
        if any(len(shape) != 1 for shape in shapes):
            raise Refused(
                f"itrd compares vectors, but the taps have shapes {list(shapes[0])} and {list(shapes[1])}; take "
                "classifier_input"
            )
        (self.student_width,), (self.teacher_width,) = shapes
        self.embedding = nn.Linear(self.student_width, self.teacher_width)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the weighted sum of both parts: [B]."""
        config = self.config
        student = at_least_float32(inputs.student_features[config.student_tap])
        teacher = inputs.teacher.features[config.teacher_tap]
        embedded = embed(self.embedding, student)
        compared = student if self.student_width == self.teacher_width else embedded
        return config.correlation_weight * correlation(
            embedded, teacher, config.alpha
        ) + config.mutual_weight * mutual_information(compared, teacher)

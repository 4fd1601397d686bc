"""Input-gradient alignment, which transfers a robust teacher's robustness."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import Term, TermInputs
from kdcore.terms.checks import require_same_shape
from kdcore.terms.precision import full_precision


@full_precision
def kdiga(student_input_gradient: Tensor, teacher_input_gradient: Tensor) -> Tensor:
    """Return |student's gradient - teacher's gradient|_2 over all pixels: [B], nats per unit of image.

    Both [B,3,H,W]: of each sample's own cross-entropy with respect to its image. The norm is not squared. 0 when
    student equals teacher (where its gradient is taken as 0).
    Source: "How and When Adversarial Robustness Transfers in Knowledge Distillation?", arXiv 2110.12072; the form is
    that of secondary sources.
    """
    theirs, ours = (list(one.shape[2:]) for one in (teacher_input_gradient, student_input_gradient))
    if theirs != ours:
        raise Refused(
            f"gradients at the student's images of {ours} and at the teacher's of {theirs} are compared pixel by "
            "pixel; leave teacher.image_size out"
        )
    require_same_shape(student_input_gradient, teacher_input_gradient)
    return (student_input_gradient - teacher_input_gradient).flatten(1).norm(dim=1)


class KDIGA(Term):
    """Alignment of input gradients (KDIGA): `kdiga`, with `ce` and `kd`.

    Costs a second backward pass through the student, whose layers must have second derivatives: fused attention has
    none, so a vision transformer runs with torch's plain (math) attention.
    """

    term: Literal["kdiga"] = "kdiga"

    def needs(self) -> Needs:
        """Return what this term reads: both networks' gradients with respect to the images."""
        return Needs(student_input_gradient=True, teacher_input_gradient=True)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the distance of the gradients: [B]."""
        assert inputs.student_input_gradient is not None
        assert inputs.teacher.input_gradient is not None
        return kdiga(inputs.student_input_gradient, inputs.teacher.input_gradient)

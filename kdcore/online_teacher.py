"""A teacher that is asked in every step: a frozen network, and the renormalisation of the student's images for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kdcore.batch import Batch, Classifier, Needs, Statistics, TeacherOutputs
from kdcore.models import classifier_of
from kdcore.taps import FeatureTaps
from kdcore.terms.logits import cross_entropy


class OnlineTeacher:
    """A frozen network that answers what a method needs, for the very views the student sees.

    Kept in eval mode and outside every module tree. renormalise: (scale, shift) that turn the batch's images into those
    the teacher was trained with, where the two differ (`renormalisation`). Gradients are with respect to the batch's
    images, so that they compare with the student's. One without a head (num_classes 0) answers with features only.
    asked_by: which term asks for a tap, for the error that refuses it (`kdcore.terms.base.tap_askers`).
    """

    def __init__(
        self,
        model: nn.Module,
        needs: Needs,
        renormalise: tuple[Tensor, Tensor] | None = None,
        asked_by: Mapping[str, str] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.needs = needs
        self.has_head = int(model.num_classes) > 0  # type: ignore[arg-type]
        self.taps = FeatureTaps(model, needs.teacher_taps | needs.class_means, role="teacher", asked_by=asked_by)
        self.classifier = None
        if needs.teacher_classifier:
            linear = classifier_of(model)
            self.classifier = Classifier(linear.weight, linear.bias)
        self.renormalise = renormalise

    def __call__(self, batch: Batch) -> TeacherOutputs:
        assert not self.model.training, "the teacher was switched to training mode"
        images = batch.images if batch.teacher_images is None else batch.teacher_images
        with torch.set_grad_enabled(self.needs.teacher_input_gradient):
            if self.needs.teacher_input_gradient:
                images = images.detach().requires_grad_(True)
            logits, features = self.taps(self.normalised(images))
            gradient = input_gradient(logits, batch.labels, images) if self.needs.teacher_input_gradient else None
        return TeacherOutputs(
            logits=logits.detach() if self.has_head else None,
            features={tap: tensor.detach() for tap, tensor in features.items()},
            classifier=self.classifier,
            input_gradient=gradient,
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Return the batch's images as the teacher was trained to see them."""
        return renormalised(images, self.renormalise)


def input_gradient(logits: Tensor, labels: Tensor, images: Tensor, create_graph: bool = False) -> Tensor:
    """Compute the gradient of each sample's cross-entropy with respect to its image: [B,3,H,W].

    Batch norm in training mode couples the samples: the gradient is then that of the micro-batch's sum.
    """
    (gradient,) = torch.autograd.grad(cross_entropy(logits, labels).sum(), images, create_graph=create_graph)
    return gradient


def renormalised(images: Tensor, by: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return images under a (scale, shift) [3,1,1], or as they are."""
    return images if by is None else images * by[0].to(images.device) + by[1].to(images.device)


def renormalisation(student: Statistics, teacher: Statistics) -> tuple[Tensor, Tensor] | None:
    """Return the (scale, shift) [3,1,1] that turn images normalised for the student into the teacher's, or None."""
    if student == teacher:
        return None
    (mean, std), (teacher_mean, teacher_std) = (tuple(map(torch.tensor, pair)) for pair in (student, teacher))
    scale, shift = std / teacher_std, (mean - teacher_mean) / teacher_std
    return scale.view(3, 1, 1), shift.view(3, 1, 1)

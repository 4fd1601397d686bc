"""The contracts between the packages: what a loader hands over, and what a teacher answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from kdcore.errors import Refused

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, std) of RGB in [0, 1] by which images are normalised


@dataclass(frozen=True)
class Classifier:
    """A linear classifier: `logits = pooled @ weight.T + bias`. weight [K,D]; bias [K] or None."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's outputs for one batch of views, computed online or read from a cache.

    logits [B,K]; features {tap: tensor [B,...]}; classifier; input_gradient [B,3,H,W] (the gradient of the teacher's
    cross-entropy with respect to its images). Only what the method's `Needs` declares is present. members: with several
    teachers, the outputs of each; the logits are then their average.
    """

    logits: Tensor | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    classifier: Classifier | None = None
    input_gradient: Tensor | None = None
    members: Mapping[str, TeacherOutputs] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassStatistics:
    """A teacher's statistics over the training set, as read by terms; what no term declares is absent.

    means: {tap: [K,D]}; similarity [K,K]: of the logits of any two classes.
    """

    means: Mapping[str, Tensor] = field(default_factory=dict)
    similarity: Tensor | None = None


@dataclass(frozen=True)
class Needs:
    """What one term reads. A method's needs are the union of its terms' (`|`).

    The online teacher and the cache satisfy the same declaration; what nothing declares is not computed.
    """

    teacher_logits: bool = False
    teacher_taps: frozenset[str] = frozenset()
    teacher_classifier: bool = False
    teacher_input_gradient: bool = False
    class_means: frozenset[str] = frozenset()  # teacher taps whose per-class mean over the training set is read
    class_similarity: bool = False  # how alike the teacher's logits of two classes are, over the training set
    student_taps: frozenset[str] = frozenset()
    student_input_gradient: bool = False
    sample_ids: bool = False
    hard_labels: bool = False  # [B] class numbers: the term has no meaning for mixed labels
    labels: bool = False  # of the images, hard or mixed
    unmixed: bool = False  # each image is of one sample: the term takes a row for its sample
    detach_head_at: str | None = None  # student tap after which the network sees a detached copy

    def __post_init__(self) -> None:
        for name in ("teacher_taps", "class_means", "student_taps"):
            object.__setattr__(self, name, _tap_names(name, getattr(self, name)))

    def __or__(self, other: Needs) -> Needs:
        if self.detach_head_at and other.detach_head_at and self.detach_head_at != other.detach_head_at:
            raise Refused(
                f"two terms detach the student's head at different taps, {self.detach_head_at!r} and "
                f"{other.detach_head_at!r}; give them the same deepest tap"
            )
        return Needs(
            teacher_logits=self.teacher_logits or other.teacher_logits,
            teacher_taps=self.teacher_taps | other.teacher_taps,
            teacher_classifier=self.teacher_classifier or other.teacher_classifier,
            teacher_input_gradient=self.teacher_input_gradient or other.teacher_input_gradient,
            class_means=self.class_means | other.class_means,
            class_similarity=self.class_similarity or other.class_similarity,
            student_taps=self.student_taps | other.student_taps,
            student_input_gradient=self.student_input_gradient or other.student_input_gradient,
            sample_ids=self.sample_ids or other.sample_ids,
            hard_labels=self.hard_labels or other.hard_labels,
            labels=self.labels or other.labels,
            unmixed=self.unmixed or other.unmixed,
            detach_head_at=self.detach_head_at or other.detach_head_at,
        )

    @staticmethod
    def union(needs: Iterable[Needs]) -> Needs:
        total = Needs()
        for one in needs:
            total = total | one
        return total

    @property
    def of_teacher(self) -> Needs:
        """The subset of these needs that a teacher answers."""
        return Needs(
            teacher_logits=self.teacher_logits,
            teacher_taps=self.teacher_taps,
            teacher_classifier=self.teacher_classifier,
            teacher_input_gradient=self.teacher_input_gradient,
            class_means=self.class_means,
            class_similarity=self.class_similarity,
        )

    @property
    def reads_labels(self) -> bool:
        """Whether anything is needed that unlabelled images lack."""
        gradients = self.teacher_input_gradient or self.student_input_gradient  # of the cross-entropy with the labels
        return self.labels or self.hard_labels or gradients or self.class_statistics

    @property
    def class_statistics(self) -> bool:
        """Whether anything is needed that takes a pass of the teacher over the training set."""
        return bool(self.class_means) or self.class_similarity

    @property
    def reads_teacher(self) -> bool:
        """Whether any output of a teacher is needed."""
        return self.of_teacher != Needs()

    def select(self, outputs: TeacherOutputs) -> TeacherOutputs:
        """Select what these needs read from a teacher's outputs for several methods, without a copy.

        KeyError for a tap that the teacher was not asked for.
        """
        return TeacherOutputs(
            logits=outputs.logits if self.teacher_logits else None,
            features={tap: outputs.features[tap] for tap in self.teacher_taps},
            classifier=outputs.classifier if self.teacher_classifier else None,
            input_gradient=outputs.input_gradient if self.teacher_input_gradient else None,
        )


def _tap_names(field: str, given: Any) -> frozenset[str]:
    """Return taps given as any collection of names. Refused for a text, which is a collection of letters."""
    found: list[Any] = list(given) if isinstance(given, Iterable) else [given]
    if isinstance(given, str) or not all(isinstance(name, str) for name in found):
        raise Refused(f"{field}={given!r}: give a set of the names of taps, such as {field}={{'layer3'}}")
    return frozenset(found)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of views, on the device of the network.

    images [B,3,H,W] float, normalised for the student, channels-last; labels [B] int64, or [B,K] float32: soft where
    views are mixed, multi-hot where an image may show several classes; sample_ids [B] int64; views [B] int64: the view
    number of each row; epoch: epochs done before this step, fractional, by which warm-ups and draws go (None is refused
    where there is one); targets: the teacher's outputs, None where it is to be asked online; teacher_images
    [B,3,H',W']: the same views in another size, if the teacher takes one.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    views: Tensor
    epoch: float | None = None
    targets: TeacherOutputs | None = None
    teacher_images: Tensor | None = None

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def hard_labels(self) -> Tensor:
        """[B] class numbers; for a mixed view, the class with the larger share."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(dim=1)

    def with_targets(self, targets: TeacherOutputs) -> Batch:
        return replace(self, targets=targets)


def soft_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels of either form as distributions [B,K] float32."""
    if labels.ndim == 2:
        return labels.float()
    return torch.nn.functional.one_hot(labels, num_classes).float()

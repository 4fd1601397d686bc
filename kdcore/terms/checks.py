"""The losses' common refusals, in one wording."""

from __future__ import annotations

from torch import Tensor

from kdcore.errors import Refused


def require_same_classes(student_logits: Tensor, teacher_logits: Tensor) -> None:
    """Refuse logits unless both are [B,K]: broadcasting would hide a teacher of other classes."""
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise Refused(
            f"student_logits {list(student_logits.shape)} and teacher_logits {list(teacher_logits.shape)} must have "
            "the same shape [B,K]; choose a teacher trained on the student's classes"
        )


def require_hard_labels(labels: Tensor) -> None:
    """Refuse labels unless they are [B] class numbers."""
    if labels.ndim != 1:
        raise Refused(
            f"labels of shape {list(labels.shape)} are mixed; this loss needs [B] class numbers: turn mixing off"
        )


def require_same_shape(student_features: Tensor, teacher_features: Tensor) -> None:
    """Refuse features unless their shapes agree: broadcasting would hide it."""
    if student_features.shape != teacher_features.shape:
        raise Refused(
            f"student features {list(student_features.shape)} and teacher features {list(teacher_features.shape)} must "
            "have the same shape; choose taps that do"
        )


def require_batch(student: Tensor) -> None:
    """Refuse a batch of one, which has no relations."""
    if len(student) < 2:
        raise Refused("a micro-batch of 1 sample has no relations; make it larger, or drop the last, partial batch")


def require_other_classes(num_classes: int, remedy: str) -> None:
    """Refuse two classes to a loss over the classes other than the label: the one left has all their probability."""
    if num_classes == 2:
        raise Refused(
            "with 2 classes, only one is left besides the label; its probability among the rest is 1, so nothing is "
            f"learnt; {remedy}"
        )


def require_places(feature_map: Tensor, least: int = 2) -> None:
    """Refuse maps [B,C,H,W] of fewer than `least` places, 2 or 3: there is too little to compare."""
    places = feature_map.shape[2:].numel()
    if places < least:
        said = "one place (or vectors) say nothing about where features are strong"
        if places == 2:
            said = "two places say no more than which of them is stronger"
        raise Refused(f"maps of {said}, so nothing is learnt; take taps of larger maps, or fitnet or rkd")

"""A teacher that cannot be what it is taken for: found by its answers on the validation images, before any training.

The weights of a classifier do not say which class each output stands for. A teacher whose outputs are in another
order than the data's classes is at chance, and a student copies it faithfully.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from timm.utils.misc import natural_key
from torch import Tensor

from cluster.images import evaluation_policy
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.tracking.description import teacher_names
from cluster.tracking.folder import RunFolder
from kdcore.named_models import module_of
from pipelines.files import write_json

DEVIATIONS = 3.0  # standard deviations beyond chance
SPLITS = {"val": "validation", "held_out": "held-out"}
FAR_BELOW = 0.05  # of top-1, and beyond chance: the data or the preprocessing are not the card's


@dataclass(frozen=True)
class Answers:
    """How a teacher answers on a split, over all ranks.

    top1: in [0, 1]; chance: the top-1 of answers that are as frequent but independent of the images; reordered: the
    top-1 if output i stands for the class that is i-th in natural order, None where that is the data's own order.
    """

    images: int
    top1: float
    chance: float
    reordered: float | None

    @property
    def in_natural_order(self) -> bool:
        """Whether its outputs stand for the classes in natural order, which is not the data's."""
        return self.reordered is not None and self.reordered > self.top1 + self.noise(self.top1)

    @property
    def half_way(self) -> float:
        """The top-1 in the middle between chance and perfect."""
        return (1 + self.chance) / 2

    @property
    def too_few(self) -> bool:
        """Whether the images are too few to tell a teacher that is half-way from one at chance."""
        return self.chance + self.noise(self.chance) > self.half_way

    def noise(self, top1: float) -> float:
        """Return how far above a true top-1 the measured one may be by chance."""
        return DEVIATIONS * math.sqrt(max(top1 * (1 - top1), 1 / self.images) / self.images)


@dataclass(frozen=True)
class Complaint:
    """What is wrong with a teacher. remedy: its likely causes, or what helps; empty where nothing is certain."""

    text: str
    remedy: str = ""


def examine(logits: Tensor, labels: NDArray[np.int32], classes: Sequence[str], rank: Rank) -> Answers:
    """Return how the teacher answers, from its logits [n,K] on this rank's share; the same on every rank.

    labels: of all images of the split [N]; classes: the class folders in the data's order.
    """
    share = rank.slice_of(len(labels))
    mine = torch.from_numpy(labels[share.start : share.stop].astype(np.int64))
    predictions = logits.argmax(dim=1) if len(mine) else mine
    order = torch.tensor(natural_order(classes))
    sums = torch.cat(
        [
            torch.stack([(predictions == mine).sum(), (order[predictions] == mine).sum()]),
            predictions.bincount(minlength=len(classes)),
        ]
    )
    hits, reordered, *predicted = rank.add_up(sums.double().to(rank.device)).tolist()
    total, there = len(labels), np.bincount(labels, minlength=len(classes))
    is_other = order.tolist() != list(range(len(classes)))
    return Answers(
        images=total,
        top1=hits / total,
        chance=float(np.dot(predicted, there)) / total**2,
        reordered=reordered / total if is_other else None,
    )


def natural_order(classes: Sequence[str]) -> list[int]:
    """Return the numbers of the classes in the order in which timm sorts class folders: 1, 2, ..., 10."""
    return sorted(range(len(classes)), key=lambda number: natural_key(classes[number]))


def complaint(answers: Answers, config: RunConfig, classes: Sequence[str], split: str) -> Complaint | None:
    """Return what is wrong with a teacher by its answers on a split; None if nothing is."""
    images = f"{answers.images:,} {SPLITS.get(split, split)} images"
    hits = f"the teacher {teacher_names(config)} is right on {round(answers.top1 * answers.images):,} of {images}"
    if answers.in_natural_order:
        first, file = ", ".join(classes[n] for n in natural_order(classes)[:3]), RunFolder.of(config).natural_order
        return Complaint(
            f"{hits} ({answers.top1:.2%}), but on {answers.reordered:.2%} if its outputs stand for the classes in "
            f"natural order ({first}, ...), as timm sorts them",
            f"give it teacher.args.num_classes={len(classes)} and teacher.class_indices={file}",
        )
    if answers.top1 <= answers.chance + answers.noise(answers.chance):
        if answers.too_few:
            if answers.top1 > answers.half_way:
                return None
            return Complaint(f"{hits}: too few to tell from chance ({answers.chance:.2%})")
        chance = f"({answers.top1:.2%}), not clearly better than chance ({answers.chance:.2%})"
        return Complaint(f"{hits} {chance}", likely_causes(config))
    expected = expected_top1(config)
    if expected is not None and answers.top1 < expected - max(FAR_BELOW, answers.noise(expected)):
        return Complaint(
            f"{hits} ({answers.top1:.2%}), far below the {expected:.2%} of its own card", likely_causes(config)
        )
    return None


def likely_causes(config: RunConfig) -> str:
    """Return why a teacher may answer badly."""
    if config.has_random_teacher:
        return "likely causes: its weights are random, as teacher.random: true asks for"
    is_function = any(
        module_of(teacher.model) and not (teacher.checkpoint or teacher.cached) for teacher in config.all_teachers
    )
    weights = "other weights, or none if its function loads none" if is_function else "other weights"
    return (
        f"likely causes: {weights}, its outputs in another order of the classes (teacher.class_indices), another "
        "normalisation than it was trained with (teacher.args.pretrained_cfg_overlay={mean: [...], std: [...]}), or "
        f"another size of images than {evaluation_policy(config.for_teacher).height} pixels"
    )


def expected_top1(config: RunConfig) -> float | None:
    """Return the top-1 that the teacher's own card states: of the run that made it, else the recipe's published one."""
    teacher = config.teacher
    if teacher is not None and teacher.checkpoint:
        made_by = RunFolder(Path(teacher.checkpoint).parent)
        if made_by.result.is_file():
            found = made_by.read_result().get("metrics", {}).get("val/top1")
            return float(found) if isinstance(found, int | float) else None
    published = config.about.expected.teacher if config.about else None
    return None if published is None else published / 100


def write_natural_indices(config: RunConfig, classes: Sequence[str]) -> None:
    """Write the file that maps class folders to the outputs of a teacher in natural order."""
    order = natural_order(classes)
    write_json(RunFolder.of(config).natural_order, {classes[number]: output for output, number in enumerate(order)})

"""Relations between the samples of a batch: SP, RKD, PKT.

All are batch-coupled. The micro-batch is the reference batch: its size is the recipe's, and no rank looks at another's
samples. Each function gives one value per sample (its row of the relation) whose mean over the micro-batch is the
published value. Features [B,...] are flattened; student and teacher may differ in width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdcore.terms.base import Pair, TermInputs
from kdcore.terms.checks import require_batch
from kdcore.terms.features import PairedTerm
from kdcore.terms.precision import full_precision

LAST_MAP = (Pair(student="forward_features", teacher="forward_features"),)
CLASSIFIER_INPUT = (Pair(student="classifier_input", teacher="classifier_input"),)


@full_precision
def sp(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return row b of (G_student - G_teacher)^2, summed and divided by B: [B], no unit.

    G [B,B] is the Gram matrix of the flattened features with rows of length 1; the mean of the values is
    |G_student - G_teacher|_F^2 / B^2. 0 when student equals teacher.
    Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv 1907.09682, equation 4.
    """
    require_batch(student_features)
    grams = [F.normalize(f.flatten(1) @ f.flatten(1).T, dim=1) for f in (student_features, teacher_features)]
    return (grams[0] - grams[1]).square().mean(dim=1)


@full_precision
def rkd(student_features: Tensor, teacher_features: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """Return distance_weight * h(distances of b) + angle_weight * h(angles at b): [B], no unit.

    h is the mean Huber loss (threshold 1) between student and teacher; distances are Euclidean, in units of their mean
    over the batch; angles are the cosines at b between every two samples. Memory: B^2 times the width. 0 when student
    equals teacher, or a rotated and scaled copy of it.
    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.
    """
    require_batch(student_features)
    student_distances, student_angles = _distances_and_angles(student_features.flatten(1))
    teacher_distances, teacher_angles = _distances_and_angles(teacher_features.flatten(1))
    distance = F.smooth_l1_loss(student_distances, teacher_distances, reduction="none").mean(dim=1)
    angle = F.smooth_l1_loss(student_angles, teacher_angles, reduction="none").mean(dim=(1, 2))
    return distance_weight * distance + angle_weight * angle


def _distances_and_angles(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return [B,B] distances over their mean (of those that are not 0), and [B,B,B] cosines at the first index."""
    differences = vectors[None, :] - vectors[:, None]
    distances = differences.norm(dim=2)
    mean = distances.sum() / (distances > 0).sum().clamp_min(1)
    directions = F.normalize(differences, dim=2)
    return distances / mean.clamp_min(1e-12), directions @ directions.transpose(1, 2)


@full_precision
def pkt(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return mean_j p_bj log(p_bj / q_bj): [B] nats per entry.

    Row b of p (teacher) and q (student) is the cosine similarity of b with every sample, moved to [0,1] and divided by
    its sum; 1e-7 keeps quotients finite. 0 when student equals teacher, or any multiple of it.
    Source: Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv 1803.10837, with its cosine kernel.
    """
    require_batch(student_features)
    q, p = _affinities(student_features.flatten(1)), _affinities(teacher_features.flatten(1))
    return (p * torch.log((p + 1e-7) / (q + 1e-7))).mean(dim=1)


def _affinities(vectors: Tensor) -> Tensor:
    directions = vectors / (vectors.norm(dim=1, keepdim=True) + 1e-7)
    similarities = (directions @ directions.T + 1) / 2
    return similarities / similarities.sum(dim=1, keepdim=True)


class SP(PairedTerm):
    """Similarity preservation (SP): `sp`, summed over pairs; by default the last maps. Usual weight: 3000."""

    term: Literal["sp"] = "sp"
    pairs: tuple[Pair, ...] = Field(default=LAST_MAP, min_length=1)
    """Taps whose relations are compared; their losses are summed."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B]."""
        return self.over_pairs(sp, inputs)


class RKD(PairedTerm):
    """Relational knowledge distillation (RKD): `rkd`, summed over pairs.

    By default on the classifiers' inputs. Usual weight: 1.
    """

    term: Literal["rkd"] = "rkd"
    pairs: tuple[Pair, ...] = Field(default=CLASSIFIER_INPUT, min_length=1)
    """Taps whose relations are compared; their losses are summed."""
    distance_weight: float = Field(default=25.0, ge=0)
    """Factor of the part on distances between samples."""
    angle_weight: float = Field(default=50.0, ge=0)
    """Factor of the part on angles between samples."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B]."""
        return self.over_pairs(lambda s, t: rkd(s, t, self.distance_weight, self.angle_weight), inputs)


class PKT(PairedTerm):
    """Probabilistic knowledge transfer (PKT): `pkt`, summed over pairs.

    By default on the classifiers' inputs. Usual weight: 30000.
    """

    term: Literal["pkt"] = "pkt"
    pairs: tuple[Pair, ...] = Field(default=CLASSIFIER_INPUT, min_length=1)
    """Taps whose relations are compared; their losses are summed."""

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B]."""
        return self.over_pairs(pkt, inputs)

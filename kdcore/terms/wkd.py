"""WKD: Wasserstein distances in place of divergences, between predictions (WKD-L) and between feature maps (WKD-F).

Source: Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS
2024, arXiv 2412.08139, and the authors' code.
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
from kdcore.terms.checks import require_hard_labels, require_other_classes, require_same_classes, require_same_shape
from kdcore.terms.dkd import HardLabelTerm
from kdcore.terms.features import aligned_maps, num_channels
from kdcore.terms.precision import full_precision

_EPSILON = 1e-8  # in the denominators of Sinkhorn's iteration, and of every cost
_HIDDEN = -1e9  # the logit of a class that has no part in a distribution


@torch.no_grad()
def class_similarity(class_logits: Tensor) -> Tensor:
    """Return the linear centred kernel alignment of every two classes: [K,K], 1 on the diagonal.

    class_logits [K,n,C]: a network's logits for n images of each class. With the columns of X_i [n,C] less their
    means, the entry is |X_j^T X_i|_F^2 / (|X_i^T X_i|_F |X_j^T X_j|_F): the cosine between the classes' [n,n] matrices
    of inner products. The images of two classes are paired by the order given only.
    """
    centred = class_logits - class_logits.mean(dim=1, keepdim=True)
    products = (centred @ centred.transpose(1, 2)).flatten(1)
    directions = F.normalize(products, dim=1)
    return directions @ directions.T


def transport_costs(similarity: Tensor, sharpness: float) -> Tensor:
    """Return the cost of moving probability between classes, 1 - exp(-sharpness (1 - similarity)): [K,K]."""
    return F.relu(1 - torch.exp(-sharpness * (1 - similarity))) + _EPSILON


@full_precision
def wkd_l(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    costs: Tensor,
    temperature: float,
    regularisation: float,
    iterations: int,
) -> Tensor:
    """Return the entropic transport cost between both predictions over the classes other than the label: [B].

    With p, q the softmax(logits / temperature) of teacher and student over those classes and kernel =
    exp(-costs / regularisation), Sinkhorn's iteration alternates v = p / (kernel^T u) and u = q / (kernel v), from a
    constant u; the value is sum_ij u_i kernel_ij v_j costs_ij. Logits [B,K], labels [B], costs [K,K]; no unit. When
    student equals teacher: the cost of the blur that the regularisation leaves, above 0.
    """
    require_hard_labels(labels)
    require_same_classes(student_logits, teacher_logits)
    target = F.one_hot(labels, costs.shape[0]).bool()
    p, q = (
        F.softmax((logits / temperature).masked_fill(target, _HIDDEN), dim=1)
        for logits in (teacher_logits, student_logits)
    )
    kernel = torch.exp(-costs / regularisation)
    # The label has no mass on either side, so that its rows of u and v stay 0: no [B,K-1,K-1] costs are needed.
    u = torch.where(target, 0.0, 1 / (costs.shape[0] - 1)).to(q)
    v = u
    for _ in range(iterations):
        v = p / (u @ kernel + _EPSILON)
        u = q / (v @ kernel.T + _EPSILON)
    return (u * (v @ (kernel * costs).T)).sum(dim=1)


class WKDL(HardLabelTerm):
    """Wasserstein distance of predictions (WKD-L): `wkd_l`, with `ce`, and `nkd` with non_target_weight 0.

    Those two, of weight 1, are the paper's parts on the label; their weights do not decay where this one's does.
    Published for ImageNet: weight 30, sharpness 1 (ResNet-34 to 18), weight 25, sharpness 2 (ResNet-50 to MobileNetV1),
    both at temperature 2. How alike two classes are is measured once, on the teacher's logits for the training images.
    It is refused for two classes: only one is left besides the label.
    """

    term: Literal["wkd_l"] = "wkd_l"
    temperature: float = Field(gt=0)
    """Temperature of both networks."""
    sharpness: float = Field(default=1.0, gt=0)
    """How fast the cost of moving probability between two classes rises as they get less alike."""
    regularisation: float = Field(default=0.05, gt=0)
    """Weight of the entropy of the transport plan, in units of the cost; smaller is nearer to the exact distance."""
    iterations: int = Field(default=10, ge=1)
    """Number of Sinkhorn's iterations, through all of which the gradient passes."""

    def needs(self) -> Needs:
        """Return what this term reads: logits, class numbers, and how alike classes are."""
        return super().needs() | Needs(labels=True, class_similarity=True)

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its costs. Refused for two classes."""
        require_other_classes(context.num_classes, "take kd or ttm")
        return WKDLModule(self, context)


class WKDLModule(nn.Module):
    """The costs of `WKDL`; a buffer, so that a resumed run keeps the costs that it began with."""

    costs: Tensor

    def __init__(self, config: WKDL, context: TermContext) -> None:
        super().__init__()
        self.config = config
        assert context.class_similarity is not None, "the term has declared class_similarity"
        self.register_buffer("costs", transport_costs(context.class_similarity.float(), config.sharpness))

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the transport costs: [B]."""
        config = self.config
        return wkd_l(
            inputs.student_logits,
            inputs.teacher_logits,
            inputs.labels,
            self.costs,
            config.temperature,
            config.regularisation,
            config.iterations,
        )


@full_precision
def wkd_f(student_map: Tensor, teacher_map: Tensor, mean_weight: float, grid: int) -> Tensor:
    """Return the squared Wasserstein distance between Gaussians of two maps, per cell of a grid: [B].

    mean over cells of sum_c (mean_weight * (mu_s - mu_t)^2 + (sigma_s - sigma_t)^2), in squared feature units: mu and
    sigma = sqrt(variance + 1e-5) are those of channel c over the places of a cell, with one degree of freedom less than
    places. Maps [B,C,H,W] of one shape; the cells are those of adaptive pooling to grid x grid. 0 when student equals
    teacher.
    """
    require_same_shape(student_map, teacher_map)
    (student_means, student_deviations), (teacher_means, teacher_deviations) = (
        cell_statistics(feature_map, grid) for feature_map in (student_map, teacher_map)
    )
    means = (student_means - teacher_means).square().sum(dim=1)
    deviations = (student_deviations - teacher_deviations).square().sum(dim=1)
    return (mean_weight * means + deviations).mean(dim=1)


def cell_statistics(feature_map: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel in each cell of a map [B,C,H,W]: [B,C,grid^2] each."""
    rows, columns = (
        [(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)] for size in feature_map.shape[2:]
    )
    cells = [feature_map[:, :, top:bottom, left:right].flatten(2) for top, bottom in rows for left, right in columns]
    if min(cell.shape[2] for cell in cells) < 2:
        raise Refused(
            f"wkd_f: a map of {list(feature_map.shape[2:])} has cells of one place in a grid of {grid}; lower grid"
        )
    means = torch.stack([cell.mean(dim=2) for cell in cells], dim=2)
    deviations = torch.stack([(cell.var(dim=2) + 1e-5).sqrt() for cell in cells], dim=2)
    return means, deviations


class WKDF(Term):
    """Wasserstein distance of feature maps (WKD-F): `wkd_f` of the last maps, the student's projected.

    The projector has batch norm and ReLU. Published: projector conv1x1, grid 1, weight 0.08 on CIFAR-100; bottleneck,
    grid 4, mean_weight 2 and weight 0.02 (ResNet-34 to 18) or 0.005 (ResNet-50 to MobileNetV1) on ImageNet, all with
    decay_from_epoch. Maps of unequal size: the larger is pooled, where the authors' code has a strided or transposed
    convolution.
    """

    term: Literal["wkd_f"] = "wkd_f"
    student_tap: str = "forward_features"
    """Tap of the student that gives a map."""
    teacher_tap: str = "forward_features"
    """Tap of the teacher that gives a map."""
    mean_weight: float = Field(default=2.0, ge=0)
    """Factor of the means' distance, beside 1 for that of the standard deviations."""
    grid: int = Field(default=1, ge=1)
    """Cells a side into which maps are cut; each cell is compared by itself. 1 compares whole maps."""
    projector: Literal["conv1x1", "bottleneck"] = "conv1x1"
    """What brings the student to the teacher's channels: a 1x1 convolution, or 1x1, 3x3 and 1x1 ones around 256."""

    def needs(self) -> Needs:
        """Return what this term reads: one map of each network."""
        return Needs(student_taps=frozenset({self.student_tap}), teacher_taps=frozenset({self.teacher_tap}))

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its projector."""
        return WKDFModule(self, context)


class WKDFModule(nn.Module):
    """The projector of `WKDF`."""

    def __init__(self, config: WKDF, context: TermContext) -> None:
        super().__init__()
        self.config = config
        s, t = (
            num_channels(shapes[tap])
            for shapes, tap in (
                (context.student_shapes, config.student_tap),
                (context.teacher_shapes, config.teacher_tap),
            )
        )
        convolutions = [nn.Conv2d(s, t, 1)]
        if config.projector == "bottleneck":
            convolutions = [nn.Conv2d(s, 256, 1), nn.Conv2d(256, 256, 3, padding=1), nn.Conv2d(256, t, 1)]
        self.project = nn.Sequential(*convolutions, nn.BatchNorm2d(t), nn.ReLU())

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the distances: [B]."""
        student_map, teacher_map = aligned_maps(
            inputs.student_features[self.config.student_tap], inputs.teacher.features[self.config.teacher_tap]
        )
        return wkd_f(self.project(student_map), teacher_map, self.config.mean_weight, self.config.grid)

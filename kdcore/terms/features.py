"""Feature distillation by mean squared error through a 1x1 projection."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.terms.base import Pair, Term, TermContext, TermInputs


def feature_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """mean over all elements of a sample of (student - teacher)^2: [B], squared feature units.

    Both [B,...] of one shape; the difference is taken in float32. 0 when student equals teacher.
    """
    if student_features.shape != teacher_features.shape:
        raise ValueError(f"features differ in shape: {list(student_features.shape)}, {list(teacher_features.shape)}")
    return (student_features.float() - teacher_features.float()).square().flatten(1).mean(dim=1)


def as_map(features: Tensor) -> Tensor:
    """Features as a map [B,C,H,W]: vectors [B,D] become 1x1 maps, tokens [B,N,D] a [B,D,N,1] column."""
    if features.ndim == 4:
        return features
    if features.ndim == 3:
        return features.transpose(1, 2).unsqueeze(-1)
    if features.ndim == 2:
        return features[:, :, None, None]
    raise ValueError(f"features of shape {list(features.shape)} are neither a map, nor tokens, nor a vector")


def pool_larger(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of two maps [B,C,H,W] average-pooled to the smaller's size; never upsampled.

    ValueError where one is larger in height and the other in width.
    """
    s, t = student_map.shape[2:], teacher_map.shape[2:]
    if s == t:
        return student_map, teacher_map
    if s[0] >= t[0] and s[1] >= t[1]:
        return F.adaptive_avg_pool2d(student_map, t), teacher_map
    if s[0] <= t[0] and s[1] <= t[1]:
        return student_map, F.adaptive_avg_pool2d(teacher_map, s)
    raise ValueError(f"maps of {list(s)} and {list(t)}: neither is the larger; choose taps of matching shape")


class FeatureMSE(Term):
    """`feature_mse` between pairs of taps, through one bias-free 1x1 convolution a pair; the mean over pairs."""

    term: Literal["feature_mse"] = "feature_mse"
    pairs: tuple[Pair, ...] = Field(min_length=1)

    def needs(self) -> Needs:
        return Needs(
            student_taps=frozenset(p.student for p in self.pairs), teacher_taps=frozenset(p.teacher for p in self.pairs)
        )

    def build(self, context: TermContext) -> nn.Module:
        return ProjectedMSE(self.pairs, context)


class ProjectedMSE(nn.Module):
    """The weights of `FeatureMSE`: student [B,C,H,W] -> teacher [B,C',H',W'], pooled first (cheaper, and equal: the
    projection is linear and has no bias)."""

    def __init__(self, pairs: tuple[Pair, ...], context: TermContext) -> None:
        super().__init__()
        self.pairs = pairs
        self.projections = nn.ModuleList(
            nn.Conv2d(
                _channels(context.student_shapes[p.student]),
                _channels(context.teacher_shapes[p.teacher]),
                1,
                bias=False,
            )
            for p in pairs
        )

    def forward(self, inputs: TermInputs) -> Tensor:
        losses = []
        for pair, projection in zip(self.pairs, self.projections, strict=True):
            student_map, teacher_map = pool_larger(
                as_map(inputs.student_features[pair.student]), as_map(inputs.teacher.features[pair.teacher])
            )
            losses.append(feature_mse(projection(student_map), teacher_map))
        return torch.stack(losses).mean(dim=0)


def _channels(shape: torch.Size) -> int:
    """Channels of a feature's shape without the batch: [C,H,W], tokens [N,D] or a vector [D]."""
    return int(shape[0] if len(shape) in (1, 3) else shape[1])

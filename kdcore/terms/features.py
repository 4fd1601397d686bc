"""Taps compared by mean squared error: pairs through 1x1 projections, FitNet's hint, SimKD's last map.

Also what every term over taps shares: maps of one size (`aligned_maps`) and the base `PairedTerm`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import Pair, Stateless, Term, TermContext, TermInputs
from kdcore.terms.checks import require_same_shape
from kdcore.terms.precision import full_precision


@full_precision
def feature_mse(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the mean over all elements of a sample of (student - teacher)^2: [B], squared feature units.

    Both [B,...] of one shape. 0 when student equals teacher.
    """
    require_same_shape(student_features, teacher_features)
    return (student_features - teacher_features).square().flatten(1).mean(dim=1)


def as_map(features: Tensor) -> Tensor:
    """Return features as a map [B,C,H,W]: vectors [B,D] become 1x1 maps, tokens [B,N,D] a [B,D,N,1] column."""
    if features.ndim == 4:
        return features
    if features.ndim == 3:
        return features.transpose(1, 2).unsqueeze(-1)
    if features.ndim == 2:
        return features[:, :, None, None]
    raise Refused(f"features of shape {list(features.shape)} are neither a map, nor tokens, nor a vector")


def pool_larger(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps [B,C,H,W] to the smaller's size; never upsample.

    Refused where one is larger in height and the other in width.
    """
    s, t = student_map.shape[2:], teacher_map.shape[2:]
    if s == t:
        return student_map, teacher_map
    if s[0] >= t[0] and s[1] >= t[1]:
        return F.adaptive_avg_pool2d(student_map, (t[0], t[1])), teacher_map
    if s[0] <= t[0] and s[1] <= t[1]:
        return student_map, F.adaptive_avg_pool2d(teacher_map, (s[0], s[1]))
    raise Refused(f"maps of {list(s)} and {list(t)}: neither is the larger; choose taps of matching shape")


def aligned_maps(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """Bring features of any two taps to maps of one size: `as_map`, then `pool_larger`.

    Refused for tokens of different number: a pooled column of tokens is not a pooled image.
    """
    if student_features.ndim == teacher_features.ndim == 3 and student_features.shape[1] != teacher_features.shape[1]:
        raise Refused(
            f"tokens [B,N,D] of different number, {student_features.shape[1]} and {teacher_features.shape[1]}; choose "
            "networks of one patch grid and one number of class tokens"
        )
    try:
        return pool_larger(as_map(student_features), as_map(teacher_features))
    except Refused as error:
        kinds = {3: "tokens [B,N,D]", 4: "a map [B,C,H,W]"}
        student, teacher = kinds[student_features.ndim], kinds[teacher_features.ndim]  # a vector is never refused
        if student == teacher:
            raise
        raise Refused(f"the student's tap is {student}, the teacher's {teacher}; choose taps of one kind") from error


def num_channels(shape: torch.Size) -> int:
    """Return the channels of a feature's shape without the batch: [C,H,W], tokens [N,D] or a vector [D]."""
    return int(shape[0] if len(shape) in (1, 3) else shape[1])


class PairedTerm(Term):
    """Base of the terms that compare taps of the student with taps of the teacher; pairs go from shallow to deep."""

    pairs: tuple[Pair, ...] = Field(min_length=1)
    """Taps that are compared, from shallow to deep."""

    def needs(self) -> Needs:
        """Return what this term reads: the taps of its pairs."""
        return Needs(
            student_taps=frozenset(p.student for p in self.pairs), teacher_taps=frozenset(p.teacher for p in self.pairs)
        )

    def tapped(self, inputs: TermInputs) -> list[tuple[Tensor, Tensor]]:
        """Return the (student, teacher) features of every pair."""
        return [(inputs.student_features[p.student], inputs.teacher.features[p.teacher]) for p in self.pairs]

    def over_pairs(self, loss: Callable[[Tensor, Tensor], Tensor], inputs: TermInputs) -> Tensor:
        """Return the loss of (student features, teacher features), summed over pairs: [B]."""
        return torch.stack([loss(*features) for features in self.tapped(inputs)]).sum(dim=0)

    def student_taps(self, context: TermContext) -> list[str]:
        """Return the student's taps in the order in which a forward pass runs them."""
        taps = {pair.student for pair in self.pairs}
        return [tap for tap in context.student_shapes if tap in taps]

    def channels(self, context: TermContext) -> list[tuple[int, int]]:
        """Return the (student, teacher) channels of every pair."""
        return [
            (num_channels(context.student_shapes[p.student]), num_channels(context.teacher_shapes[p.teacher]))
            for p in self.pairs
        ]


class ProjectedTerm(PairedTerm):
    """Base of the terms that compare taps through one bias-free 1x1 convolution per pair."""

    standardise: bool = False
    """Whether each channel of the teacher's map is brought to mean 0 and variance 1 over the micro-batch and its
    places, so that channels and pairs of large values do not outweigh the others. The published methods do not."""


class FeatureMSE(ProjectedTerm):
    """Features compared directly: `feature_mse` between pairs of taps, the mean over pairs.

    Each pair has a bias-free 1x1 convolution of its own between student and teacher.
    """

    term: Literal["feature_mse"] = "feature_mse"

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its projections."""
        return projected_mse(self, context)


class FeatureOnly(ProjectedTerm):
    """Distillation without logit losses: `FeatureMSE`, and no label reaches the backbone.

    What follows one of the student's taps sees a detached copy of it, so the `ce` term of the method trains only the
    head, in the same backward pass.
    Source: Cooper, Chen, Dwivedy, Gurari, "Logit-Based Losses Limit the Effectiveness of Feature Knowledge
    Distillation", arXiv 2511.14981.
    """

    term: Literal["feature_only"] = "feature_only"
    detach_head_at: str | None = None
    """Student tap of a pair behind which the head begins. Not given: that of the last pair."""

    @model_validator(mode="after")
    def _detach_at_a_pair(self) -> FeatureOnly:
        taps = [p.student for p in self.pairs]
        if self.detach_head_at is not None and self.detach_head_at not in taps:
            raise Refused(
                f"detach_head_at {self.detach_head_at!r} is not a student tap of the pairs; take one of {taps}"
            )
        return self

    def needs(self) -> Needs:
        """Return what this term reads: the taps of its pairs, and where the head is to be detached."""
        return super().needs() | Needs(detach_head_at=self.detach_head_at or self.pairs[-1].student)

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its projections. Refused where the head would begin before the deepest pair."""
        last, in_order = self.pairs[-1].student, self.student_taps(context)
        if self.detach_head_at is None and last != in_order[-1]:
            raise Refused(
                f"the head begins behind the last pair, but {last!r} runs before {in_order[-1]!r}, so labels would "
                f"reach the backbone between them; list the pairs from shallow to deep ({', '.join(in_order)}), or "
                "give detach_head_at"
            )
        return projected_mse(self, context)


def projected_mse(config: ProjectedTerm, context: TermContext) -> RegressedMSE:
    """Build a `RegressedMSE` with one bias-free 1x1 convolution per pair."""
    projections: list[nn.Module] = [nn.Conv2d(s, t, 1, bias=False) for s, t in config.channels(context)]
    return RegressedMSE(config, projections, config.standardise)


@full_precision
def standardised(features: Tensor) -> Tensor:
    """Return maps [B,C,H,W] with each channel at mean 0 and variance 1 over B, H and W; at 0 where it is constant."""
    return F.batch_norm(features, None, None, training=True)


class FitNet(PairedTerm):
    """FitNet's hint: `feature_mse` of one middle layer, usually at weight 100, through a regressor.

    The regressor is a 1x1 convolution, batch norm and ReLU, as in the code behind the published tables; the larger map
    is pooled first where theirs has a strided or transposed convolution.
    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550, equation 3.
    """

    term: Literal["fitnet"] = "fitnet"
    pairs: tuple[Pair, ...] = Field(min_length=1, max_length=1)
    """The one pair of middle layers that is compared."""
    relu: bool = True
    """Whether the regressor ends in a ReLU; false for a teacher's tap of either sign."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its regressor."""
        ((s, t),) = self.channels(context)
        layers: list[nn.Module] = [nn.Conv2d(s, t, 1), nn.BatchNorm2d(t)]
        return RegressedMSE(self, [nn.Sequential(*layers, *([nn.ReLU()] if self.relu else []))])


class RegressedMSE(nn.Module):
    """The mean over pairs of `feature_mse` through a regressor per pair: student [B,C,H,W] -> teacher [B,C',H',W'].

    Maps are pooled before they are regressed: cheaper, and equal where the regressor is linear and has no bias.
    standardise: whether the teacher's are `standardised`, after pooling.
    """

    def __init__(self, config: PairedTerm, regressors: list[nn.Module], standardise: bool = False) -> None:
        super().__init__()
        self.config, self.standardise = config, standardise
        self.regressors = nn.ModuleList(regressors)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the mean over pairs: [B]."""
        losses = []
        for features, regressor in zip(self.config.tapped(inputs), self.regressors, strict=True):
            student_map, teacher_map = aligned_maps(*features)
            target = standardised(teacher_map) if self.standardise else teacher_map
            losses.append(feature_mse(regressor(student_map), target))
        return torch.stack(losses).mean(dim=0)


class SimKD(Term):
    """SimKD: `feature_mse` between the student's projected map and the teacher's last map, and nothing else.

    The student is the graph that reuses the teacher's classifier; it has pooled and projected already, so only the
    teacher's map may still be the larger one, and is pooled. The labels are not read; weight is 1 in the paper.
    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022, arXiv 2203.14001.
    """

    term: Literal["simkd"] = "simkd"
    student_tap: str = "forward_features"
    """Tap of the student that gives the projected map."""
    teacher_tap: str = "forward_features"
    """Tap of the teacher that gives its last map."""

    def needs(self) -> Needs:
        """Return what this term reads: one map of each network."""
        return Needs(student_taps=frozenset({self.student_tap}), teacher_taps=frozenset({self.teacher_tap}))

    def build(self, context: TermContext) -> nn.Module:
        """Build the term, with the conversion of both features to one form if the student has it."""
        return InTeachersLayout(self, context.compared) if context.compared else Stateless(self)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B]. Refused for a student's map that is the larger one."""
        student, teacher = inputs.student_features[self.student_tap], inputs.teacher.features[self.teacher_tap]
        if student.ndim == 4 and teacher.ndim == 4 and student.shape[2:] != teacher.shape[2:]:
            pooled_student, teacher = pool_larger(student, teacher)
            if pooled_student is not student:
                raise Refused(
                    f"the student's map {list(student.shape)} is larger than the teacher's {list(teacher.shape)}: pool "
                    "it before the projector; the graph with the reused classifier pools to the teacher's map at "
                    "views.size, so leave smaller ones out of views.sizes there"
                )
        return feature_mse(student, teacher)


class InTeachersLayout(nn.Module):
    """`SimKD` for a student that knows its teacher's layout: tokens, too, are pooled to the student's grid."""

    def __init__(self, config: SimKD, compared: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.config, self.compared = config, compared

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the loss: [B]."""
        mine, theirs = self.config.student_tap, self.config.teacher_tap
        features, of_teacher = inputs.student_features, inputs.teacher.features
        student, teacher = self.compared(features[mine], of_teacher[theirs])
        answer = replace(inputs.teacher, features={**of_teacher, theirs: teacher})
        return self.config.loss(replace(inputs, student_features={**features, mine: student}, teacher=answer))

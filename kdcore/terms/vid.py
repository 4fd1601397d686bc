"""Variational information distillation: the teacher's map under a Gaussian that the student predicts."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.checks import require_same_shape
from kdcore.terms.features import PairedTerm, aligned_maps
from kdcore.terms.precision import full_precision

_LEAST_VARIANCE = 1e-5


@full_precision
def vid(predicted_mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    """Return the mean over elements of ((predicted - teacher)^2 / variance + log variance) / 2: [B] nats.

    predicted_mean, teacher_map [B,C,H,W]; variance [C]. The negative log-likelihood less its constant. When the
    prediction equals the teacher: mean_c log variance_c / 2, which may be negative.
    Source: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv 1904.05835.
    """
    require_same_shape(predicted_mean, teacher_map)
    variance = variance[:, None, None]
    return 0.5 * ((predicted_mean - teacher_map).square() / variance + variance.log()).mean(dim=(1, 2, 3))


class VID(PairedTerm):
    """Variational information distillation (VID): `vid`, summed over pairs; usual weight: 1.

    The mean is predicted by three bias-free 1x1 convolutions of the teacher's width with ReLU between; the variance is
    one trained number per channel, kept positive by a softplus.
    """

    term: Literal["vid"] = "vid"
    initial_variance: float = Field(default=5.0, gt=_LEAST_VARIANCE)
    """Variance of every channel before training, in squared feature units."""

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its regressors and variances."""
        return VIDModule(self, context)


class VIDModule(nn.Module):
    """The regressors and variances of `VID`, one of each per pair."""

    def __init__(self, config: VID, context: TermContext) -> None:
        super().__init__()
        self.config = config
        channels = config.channels(context)
        self.regressors = nn.ModuleList(_regressor(s, t) for s, t in channels)
        # softplus(scale) + the least variance is the initial variance; above 20 torch's softplus is the identity
        scale = torch.tensor(config.initial_variance - _LEAST_VARIANCE)
        scale = scale if scale > 20 else scale.expm1().log()
        self.scales = nn.ParameterList(nn.Parameter(scale.repeat(t)) for _, t in channels)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B] nats."""
        losses = []
        for features, regressor, scale in zip(self.config.tapped(inputs), self.regressors, self.scales, strict=True):
            student_map, teacher_map = aligned_maps(*features)
            losses.append(vid(regressor(student_map), teacher_map, F.softplus(scale) + _LEAST_VARIANCE))
        return torch.stack(losses).sum(dim=0)


def _regressor(student_channels: int, teacher_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
    )

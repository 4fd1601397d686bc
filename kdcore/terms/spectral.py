"""Attention maps compared by their spatial frequencies (the DCT-driven loss)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import TermInputs
from kdcore.terms.checks import require_places
from kdcore.terms.features import PairedTerm
from kdcore.terms.precision import full_precision

_EPSILON = 1e-12
_ROUNDING = 1e-6  # share of its largest value: a map that varies by less is constant, with no range to scale


def dct(maps: Tensor) -> Tensor:
    """Take the orthonormal two-dimensional cosine transform (type II) of [B,H,W]."""
    height, width = (_cosines(n, maps) for n in maps.shape[1:])
    return height @ maps @ width.T


def _cosines(n: int, like: Tensor) -> Tensor:
    """Return [n,n]: row k is the k-th cosine, of length 1."""
    places = torch.arange(n, device=like.device, dtype=like.dtype)
    rows = torch.cos(math.pi / n * (places + 0.5) * places[:, None]) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def spectrum(feature_map: Tensor) -> Tensor:
    """Return the frequencies of mean_c F_c^2, scaled to [0,1] before and after the transform: [B,H*W].

    The mean of the scaled activation is removed, so that the first coefficient does not dwarf the rest.
    """
    activation = _to_unit_range(feature_map.square().mean(dim=1))
    return _to_unit_range(dct(activation - activation.mean(dim=(1, 2), keepdim=True))).flatten(1)


def _to_unit_range(maps: Tensor) -> Tensor:
    """Scale each map [B,H,W] to [0,1]; one that is constant up to rounding, to 0, and without a gradient."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    varies = high - low > _ROUNDING * torch.maximum(high.abs(), low.abs())
    return varies * (maps - low) / (torch.where(varies, high - low, 1.0) + _EPSILON)


@full_precision
def spectral(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return |spectrum(student) - spectrum(teacher)|_2: [B], no unit. 0 when student equals teacher.

    Both [B,C,H,W], of any channels and one size: the transform of a resized map would be another one. Refused for maps
    of one place, whose only frequency is removed with the mean, and of two, whose scaled values are 0 and 1.
    The transform is the cosine transform that the paper names. The authors' code takes the real part of a Fourier
    transform instead, which cannot tell a map from the same map turned by 180 degrees, and divides by the largest
    value where this divides by the range (plus an epsilon, so that a constant map gives 0 and not NaN).
    Source: López-Cifuentes et al., "Attention-Based Knowledge Distillation in Scene Recognition: The Impact of a
    DCT-Driven Loss", IEEE TCSVT 2023, arXiv 2205.01997.
    """
    if student_map.ndim != 4 or teacher_map.ndim != 4 or student_map.shape[2:] != teacher_map.shape[2:]:
        raise Refused(
            f"maps [B,C,H,W] of one size are needed, got {list(student_map.shape)} and {list(teacher_map.shape)}; pair "
            "stages of equal resolution"
        )
    require_places(student_map, least=3)
    return (spectrum(student_map) - spectrum(teacher_map)).norm(dim=1)


class Spectral(PairedTerm):
    """Attention maps compared by their frequencies: `spectral`, summed over pairs, the stages' ends.

    Published weights of ce / spectral / kd (temperature 4): 1 / 1 / 0, or 0.1 / 1 / 1.
    """

    term: Literal["spectral"] = "spectral"
    only_correct_teacher: bool = True
    """Whether a sample that the teacher gets wrong counts 0, as published."""

    def needs(self) -> Needs:
        """Return what this term reads: the taps, and what tells whether the teacher is right."""
        return super().needs() | Needs(teacher_logits=self.only_correct_teacher, hard_labels=self.only_correct_teacher)

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the distance, summed over pairs: [B]."""
        values = self.over_pairs(spectral, inputs)
        if not self.only_correct_teacher:
            return values
        return values * (inputs.teacher_logits.argmax(dim=1) == inputs.labels)

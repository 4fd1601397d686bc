"""Attention transfer: where the features are strong, whatever their channels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from kdcore.terms.base import TermInputs
from kdcore.terms.checks import require_places
from kdcore.terms.features import PairedTerm, aligned_maps
from kdcore.terms.precision import full_precision


def attention(feature_map: Tensor) -> Tensor:
    """Return mean_c F_c^2 over the positions, as a vector of length 1: [B,C,H,W] -> [B,H*W]."""
    return F.normalize(feature_map.square().mean(dim=1).flatten(1), dim=1)


@full_precision
def at(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return the mean over positions of (attention(student) - attention(teacher))^2: [B], no unit.

    Maps [B,C,H,W] of any channels, or tokens; the larger is pooled to the smaller. 0 when student equals teacher.
    Refused where that leaves one place, whose attention is always 1: of vectors, and of 1x1 maps.
    Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928, equation 2, with
    the mean in place of the norm, as in the code behind the published tables.
    """
    student_map, teacher_map = aligned_maps(student_features, teacher_features)
    require_places(student_map)
    return (attention(student_map) - attention(teacher_map)).square().mean(dim=1)


class AT(PairedTerm):
    """Attention transfer (AT): `at`, summed over pairs.

    The published pairs are the ends of the stages without the stem, at weight 1000.
    """

    term: Literal["at"] = "at"

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B]."""
        return self.over_pairs(at, inputs)

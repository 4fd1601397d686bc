"""The geometry of one layer's features, and the knowledge quality Q = S + sqrt(I * E) computed from it.

Source: Cooper, Chen, Dwivedy, Gurari, "Logit-Based Losses Limit the Effectiveness of Feature Knowledge Distillation",
arXiv 2511.14981, whose official code gives the formulas. What differs here: the average within a class leaves out each
vector's cosine with itself, unless `separation="official"` asks for it; both the pairwise figures and the spectra use
every image of the sample; the effective dimension cuts each class's spectrum separately, so that the 95 % do truncate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.errors import Refused

InformationScale = Literal["log5", "log_ed"]
Separation = Literal["pairs", "official"]
# Defaults:
INFORMATION_SCALE: InformationScale = "log5"
SEPARATION: Separation = "pairs"
VARIANCE_KEPT = 0.95  # by the leading components that the effective dimension counts
# Float32 features round at 6e-8 of their size, so variance below 1e-12 of the mean square is rounding, not spread.
SPREAD_FLOOR = 1e-12
BLOCK_ELEMENTS = 2**23  # features in float64 at a time: 64 MiB
PANEL_ROWS = 512  # of the Gram matrix at a time, so that its upper half need not be computed


@dataclass(frozen=True)
class Quality:
    """The score of one tap; all figures are pure numbers.

    samples: images measured; dims: elements of one image's features, after pooling; effective_dims: leading principal
    components that hold 95 % of a class's variance, the mean over classes.
    """

    separation: float
    information: float
    efficiency: float
    samples: int
    dims: int
    effective_dims: float

    @property
    def q(self) -> float:
        """Return Q = S + sqrt(I * E)."""
        return self.separation + math.sqrt(self.information * self.efficiency)


def layer_quality(
    rows: Tensor,
    counts: Sequence[int],
    num_train: int,
    information_scale: InformationScale = INFORMATION_SCALE,
    device: torch.device | str = "cpu",
    separation: Separation = SEPARATION,
) -> Quality:
    """Score one layer by its features, rows [n,D], the counts[0] images of class 0 first, and so on.

    With cos the absolute cosine of two features (0 where one of them is zero), c a class and N = num_train:

    * S = mean_c of the average cos of two images of c, less the average over ordered pairs of classes of the average
      cos between them. In [-1, 1].
    * I = (1 - mean_c of the smallest cos within c) * H / Z, with H the mean_c of the entropy (nats) of the variance
      shares of c's principal components. At least 0; 0 where no class has any spread.
    * E = 2 * mean_c of the smallest distance from an image of c to one of another class / mean_c of c's average norm
      * (N / pi)^(1/m). At least 0. m = min(n, D) as in the official code: not an intrinsic dimension, so that the last
      factor is within some percent of 1 at a hundred dimensions and more.

    information_scale: Z = log 5 ("log5", the default) or the log of the effective dimension ("log_ed"); the source has
    both. log 5 is what the source plots as knowledge quality and chose its layers by. It measures every layer in one
    unit, whereas log_ed divides the entropy by nearly its own maximum, so that a layer gains little from spreading
    over more directions, and it has no value where one component holds the variance. The 5 itself has no derivation:
    it only sets how much sqrt(I * E) counts relative to S.

    separation: whether S averages, within a class, over pairs of different images ("pairs", the default) or over the
    whole block of the class ("official", as the source's code does), each image's cosine of 1 with itself included.
    That is (1 - average) / n more for n images: it says nothing about the class and shrinks as more images are
    measured, so that scores over different numbers of images would not compare. Take it to compare with published
    figures.

    All three are unchanged where the features are scaled or rotated as a whole, but not where they are shifted: they
    depend on the features only through their Gram matrix.

    Refused where all features are zero, or Z is not positive.
    """
    rows = rows.to(device)
    classes = _slices(counts)
    gram = _gram(rows)
    norms = gram.diagonal().sqrt()
    if not norms.any():
        raise Refused("its features are zero for every image, so that it has no score; leave it out")
    sizes = torch.where(norms > 0, norms, 1.0)
    cosines = (gram.abs() / sizes / sizes[:, None]).clamp_(max=1.0)
    smallest = torch.stack([cosines[c, c].min() for c in classes]).mean().item()
    entropy, effective_dims = np.mean([_spectrum(gram[c, c]) for c in classes], axis=0).tolist()
    distance = np.mean([_distance_to_others(rows, gram, c) for c in classes]).item()
    norm = torch.stack([norms[c].mean() for c in classes]).mean().item()
    return Quality(
        separation=_separation(cosines, counts, separation),
        information=_information((1 - smallest) * entropy, effective_dims, information_scale),
        efficiency=2 * distance / norm * (num_train / math.pi) ** (1 / min(rows.shape)),
        samples=len(rows),
        dims=rows.shape[1],
        effective_dims=effective_dims,
    )


def _gram(rows: Tensor) -> Tensor:
    """Take the inner products of all rows: [n,D] -> [n,n] float64, a block of columns at a time, each product once."""
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for block in rows.split(max(1, BLOCK_ELEMENTS // len(rows)), dim=1):
        block = block.double()
        for start in range(0, len(rows), PANEL_ROWS):
            panel = slice(start, start + PANEL_ROWS)
            gram[start:, panel] += block[start:] @ block[panel].T
    return gram.tril() + gram.tril(-1).T


def _separation(cosines: Tensor, counts: Sequence[int], separation: Separation) -> float:
    sizes = torch.tensor(counts, dtype=torch.float64, device=cosines.device)
    numbers = torch.arange(len(counts), device=cosines.device).repeat_interleave(sizes.long())
    members = F.one_hot(numbers, len(counts)).double()
    sums = members.T @ cosines @ members  # [K,K]
    if separation == "official":
        within = sums.diagonal() / sizes.square()
    else:
        with_themselves = members.T @ cosines.diagonal()
        within = (sums.diagonal() - with_themselves) / (sizes * (sizes - 1))
    between = sums / sizes / sizes[:, None]
    pairs = len(counts) * (len(counts) - 1)
    return float(within.mean() - (between.sum() - between.trace()) / pairs)


def _information(numerator: float, effective_dims: float, information_scale: InformationScale) -> float:
    if numerator == 0:
        return 0.0
    if information_scale == "log5":
        return numerator / math.log(5)
    if effective_dims <= 1:
        raise Refused(
            f"its effective dimension is {effective_dims:.3g}, whose log is not a scale; measure more images a class, "
            "or take information_scale='log5'"
        )
    return numerator / math.log(effective_dims)


def _spectrum(gram: Tensor) -> tuple[float, float]:
    """Return (entropy in nats, effective dimension) of a class from its inner products [m,m]; zeros without spread.

    The eigenvalues of the centred Gram matrix are the squared singular values of the centred features.
    """
    means = gram.mean(dim=0)
    variances = torch.linalg.eigvalsh(gram - means - means[:, None] + means.mean()).flip(0)
    variances = variances[variances > SPREAD_FLOOR * gram.trace()]
    if len(variances) == 0:
        return 0.0, 0.0
    shares = variances / variances.sum()
    entropy = torch.special.entr(shares).sum()
    return float(entropy), float((shares.cumsum(0) < VARIANCE_KEPT).sum() + 1)


def _distance_to_others(rows: Tensor, gram: Tensor, members: slice) -> float:
    """Return the smallest distance from a row of the class to one outside it.

    The Gram matrix finds the nearest pair; its distance comes from the two rows, since there the difference of inner
    products would lose half of the digits.
    """
    squares = gram.diagonal()
    distances = squares[members, None] + squares - 2 * gram[members]
    distances[:, members] = torch.inf
    inside, outside = divmod(int(distances.argmin()), len(rows))
    return float(torch.linalg.vector_norm(rows[members][inside].double() - rows[outside].double()))


def _slices(counts: Sequence[int]) -> list[slice]:
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]

"""Logits in a few dozen bytes per view, to be read at every temperature.

Plain top-k knows nothing of the classes it leaves out, and those are most of the mass at temperatures above 1. Here all
classes are kept, roughly, and a few exactly:

    logits ~ mean + sum_j level(code_j) * basis_j   +   corrections of a few classes

mean and basis are the principal components of the teacher's logits on a sample of the views that are stored. Each
component is coded with as many bits as its variance earns (reverse water-filling; Cover and Thomas, "Elements of
Information Theory", section 10.3) and rounded to Lloyd's levels. The classes that are then furthest off, weighted by
their share of the softened distribution, are corrected: an index and a value in one machine word.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcore.errors import Refused
from kdcore.terms.logits import kl_divergence
from kdcore.terms.ttm import power_sum

# Where the code is to be accurate: D(p || q) at a temperature is about the p-weighted variance of the logits' error,
# over twice the squared temperature.
TEMPERATURES = (1.0, 2.0, 4.0)
_MAX_BITS = 6
_PASSES = 2


@dataclass(frozen=True)
class CodeSize:
    """The bytes that a view takes, and what for.

    num_bytes in all, of which a word for each of `top` corrections, 2 for their scale, and the rest for the components.
    """

    num_classes: int
    num_bytes: int
    top: int

    @property
    def index_bits(self) -> int:
        return max(1, (self.num_classes - 1).bit_length())

    @property
    def word_bits(self) -> int:
        """Bits of one correction: at least 6 are left for its value."""
        return 16 if self.index_bits <= 10 else 32

    @property
    def value_bits(self) -> int:
        return min(16, self.word_bits - self.index_bits)

    @property
    def code_bytes(self) -> int:
        return self.num_bytes - 2 - self.top * self.word_bits // 8

    def check(self) -> None:
        """Refuse a size that holds no code, or saves nothing."""
        if self.top < 1 or self.top > self.num_classes or self.code_bytes < 1:
            raise Refused(
                f"cache.sparse_bytes={self.num_bytes} with cache.sparse_top={self.top} leaves {self.code_bytes} bytes "
                f"for the other classes of {self.num_classes}; take more bytes, or fewer corrections"
            )
        if self.num_bytes >= 2 * self.num_classes:
            raise Refused(
                f"cache.sparse_bytes={self.num_bytes} saves nothing: the {self.num_classes} logits themselves take "
                f"{2 * self.num_classes} bytes in float16; set cache.logits: dense"
            )


class LogitCode:
    """The code of one teacher's logits, on one device.

    mean [K]; basis [n,K] (a component's standard deviation times its direction); bits [n]; levels [bits,2^bits] (row b:
    the levels of b bits, in order).
    """

    def __init__(self, size: CodeSize, mean: Tensor, basis: Tensor, bits: Tensor, levels: Tensor) -> None:
        self.size = size
        self.mean, self.basis, self.bits, self.levels = mean, basis, bits, levels
        ends = bits.long().cumsum(0)
        starts = ends - bits.long()
        self.byte, self.shift = starts // 8, starts % 8
        self.mask = (1 << bits.long()) - 1
        self._own_levels = [levels[b, : 2**b] for b in bits.tolist()]

    @classmethod
    def fit(cls, logits: Tensor, size: CodeSize) -> LogitCode:
        """Return the code for logits like these [n,K]."""
        size.check()
        logits = logits.double()
        mean = logits.mean(dim=0)
        _, singular, directions = torch.linalg.svd(logits - mean, full_matrices=False)
        variances = singular.square() / len(logits)
        kept = variances > 1e-9 * variances[0]
        if not kept.any():
            raise Refused(f"the teacher gives all {len(logits)} sampled views the same logits; check its weights")
        deviations, directions = variances[kept].sqrt(), directions[kept]
        scores = (logits - mean) @ directions.T / deviations
        levels, distortion = fit_levels(scores.flatten())
        bits = allocate(variances[kept], distortion, 8 * size.code_bytes)
        used = bits > 0
        basis = deviations[used, None] * directions[used]
        return cls(size, mean.float(), basis.float(), bits[used].to(torch.uint8), levels.float())

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis, "bits": self.bits, "levels": self.levels}

    @classmethod
    def of(cls, size: CodeSize, tensors: Mapping[str, Tensor]) -> LogitCode:
        return cls(size, *(tensors[name] for name in ("mean", "basis", "bits", "levels")))

    def encode(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits as components [B,code_bytes] uint8, scale [B,1] float16, corrections [B,top] int16 or int32."""
        logits = logits.float()
        weights = class_importance(logits)
        codes, error = self._components(logits, weights)
        index = (weights * error.square()).topk(self.size.top, dim=1).indices
        value = error.gather(1, index)
        steps = 2 ** (self.size.value_bits - 1) - 1
        # A scale that float16 rounds down would cut the largest value off; 2^-10 more than covers the rounding.
        scale = (value.abs().amax(dim=1, keepdim=True) / steps * (1 + 2**-10)).half()
        # A NaN need not be among the corrected: the scale carries it, so that the row is known not to be held.
        scale = scale.where(logits.isfinite().all(dim=1, keepdim=True), torch.nan)
        quantised = (value / scale.float().clamp_min(1e-12)).round().clamp(-steps, steps).long()
        words = index | (quantised & (2 * steps + 1)) << self.size.index_bits
        return self._packed(codes), scale, signed(words, self.size.word_bits)

    def decode(self, packed: Tensor, scale: Tensor, words: Tensor) -> Tensor:
        """Return the logits that `encode` was given, up to its error: [B,K] float32."""
        logits = self._value(self._unpacked(packed)) @ self.basis + self.mean
        words = words.long() & (2**self.size.word_bits - 1)
        index, value = words & (2**self.size.index_bits - 1), words >> self.size.index_bits
        half = 2 ** (self.size.value_bits - 1)
        value = ((value & (2 * half - 1)) ^ half) - half  # the sign of a number of value_bits bits
        corrected = logits.gather(1, index) + value.float() * scale.float()
        return logits.scatter(1, index, corrected)

    def _components(self, logits: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return (codes [B,n], the error that they leave [B,K]).

        Rounded one by one, each to the level that suits the weighted error best, given all others; the classes that
        will be corrected do not count.
        """
        deviations = self.basis.norm(dim=1)
        codes = self._nearest((logits - self.mean) @ (self.basis / deviations.square()[:, None]).T)
        error = logits - self.mean - self._value(codes) @ self.basis
        for _ in range(_PASSES):
            corrected = (weights * error.square()).topk(self.size.top, dim=1).indices
            rest = weights.scatter(1, corrected, 0.0)
            for j, (row, levels) in enumerate(zip(self.basis, self._own_levels, strict=True)):
                old = levels[codes[:, j]]
                wanted = old + (rest * error) @ row / (rest @ row.square()).clamp_min(1e-12)
                codes[:, j] = (wanted[:, None] - levels).abs().argmin(dim=1)
                error -= (levels[codes[:, j]] - old)[:, None] * row
        return codes, error

    def _nearest(self, scores: Tensor) -> Tensor:
        """Return the code of the level nearest to each score: [B,n] -> [B,n] int64."""
        codes = torch.empty(scores.shape, dtype=torch.int64, device=scores.device)
        for bits in range(1, _MAX_BITS + 1):
            columns = self.bits == bits
            levels = self.levels[bits][: 2**bits]
            codes[:, columns] = torch.bucketize(scores[:, columns].contiguous(), (levels[1:] + levels[:-1]) / 2)
        return codes

    def _value(self, codes: Tensor) -> Tensor:
        values: Tensor = self.levels[self.bits.long(), codes]
        return values

    def _packed(self, codes: Tensor) -> Tensor:
        """Pack codes [B,n] end to end: [B,code_bytes] uint8. A code touches at most two bytes, and no bit twice."""
        words = torch.zeros(len(codes), self.size.code_bytes + 1, dtype=torch.int64, device=codes.device)
        shifted = codes << self.shift
        words.index_add_(1, self.byte, shifted & 255)
        words.index_add_(1, self.byte + 1, shifted >> 8)
        return words[:, :-1].to(torch.uint8)

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Return the codes that `_packed` was given."""
        following = (self.byte + 1).clamp_max(self.size.code_bytes - 1)
        both = packed[:, self.byte].long() | packed[:, following].long() << 8
        codes: Tensor = both >> self.shift & self.mask
        return codes


def class_importance(logits: Tensor) -> Tensor:
    """Return the cost of an error of each logit, on average over TEMPERATURES: p / temperature^2, [B,K]."""
    return torch.stack([torch.softmax(logits / t, dim=1) / t**2 for t in TEMPERATURES]).mean(dim=0)


def signed(words: Tensor, bits: int) -> Tensor:
    """Return words of 16 or 32 bits, kept in int64, as the signed integers of the same bits."""
    half = 2 ** (bits - 1)
    return ((words ^ half) - half).to(torch.int16 if bits == 16 else torch.int32)


def fit_levels(scores: Tensor) -> tuple[Tensor, list[float]]:
    """Return levels for 0 to 6 bits, as rows of 64, and the mean squared error that each leaves.

    By Lloyd's iteration on standardised scores [n]. Rows are padded with their last level.
    """
    sample = scores.sort().values[:: max(1, len(scores) // 100_000)].contiguous()
    sums = torch.nn.functional.pad(sample.cumsum(0), (1, 0))
    table = torch.zeros(_MAX_BITS + 1, 2**_MAX_BITS, dtype=scores.dtype)
    distortion = [float(sample.square().mean())]
    for bits in range(1, _MAX_BITS + 1):
        places = (torch.arange(2**bits) + 0.5) / 2**bits * (len(sample) - 1)
        levels = sample[places.long()]
        for _ in range(100):
            cuts = torch.searchsorted(sample, (levels[1:] + levels[:-1]) / 2)
            edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_full((1,), len(sample))])
            counts = edges.diff()
            levels = torch.where(counts > 0, sums[edges].diff() / counts.clamp_min(1), levels)
        nearest = levels[torch.bucketize(sample, (levels[1:] + levels[:-1]) / 2)]
        distortion.append(float((sample - nearest).square().mean()))
        table[bits] = levels[-1]
        table[bits, : 2**bits] = levels
    return table, distortion


def allocate(variances: Tensor, distortion: list[float], num_bits: int) -> Tensor:
    """Return the bits for components of these decreasing variances [n]: each bit goes where it saves most.

    Every saving is known beforehand, and savings shrink with each bit, so the best num_bits of all are the answer.
    """
    savings = torch.tensor([a - b for a, b in itertools.pairwise(distortion)], dtype=variances.dtype)
    gains = variances[:, None] * torch.cummin(savings, dim=0).values
    best = gains.flatten().sort(descending=True, stable=True).indices[:num_bits]
    bits = torch.zeros(len(variances), dtype=torch.int64)
    return bits.index_add_(0, best // len(savings), torch.ones_like(best))


def measured_error(logits: Tensor, decoded: Tensor) -> dict[str, float]:
    """Return a code's error on logits [n,K] that it was not fitted to.

    Mean and 99th percentile of D(softmax(logits / T) || softmax(decoded / T)) in nats, and the mean relative error of
    WTTM's `power_sum` at gamma 0.5.
    """
    errors: dict[str, float] = {"rows": len(logits)}
    for temperature in TEMPERATURES:
        log_p, log_q = (torch.log_softmax(x.double() / temperature, dim=1) for x in (logits, decoded))
        nats = kl_divergence(log_p, log_q)
        errors[f"nats at temperature {temperature:g}"] = float(nats.mean())
        errors[f"nats at temperature {temperature:g}, 99th percentile"] = float(nats.quantile(0.99))
    ours, theirs = (power_sum(x.double(), 0.5) for x in (decoded, logits))
    errors["relative error of power_sum at gamma 0.5"] = float((ours / theirs - 1).abs().mean())
    return {name: round(value, 6 - int(math.log10(value + 1))) for name, value in errors.items()}

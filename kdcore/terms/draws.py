"""Random numbers of terms, as a pure function of (seed, stream, epoch, sample id, view).

Masks, noises and negatives are drawn here and from no stateful generator: a resumed run draws what the unbroken run
would have drawn, and a sample draws the same on whichever rank it lands. A sample that an epoch shows several times
draws again in each of its views; where an epoch shows all samples in one view, that view changes no bit. The generator
is SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): a counter passed through a mixing function of 64 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from kdcore.terms.base import Term, TermContext, TermInputs

_INCREMENT = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio; these three are written as signed integers
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
_MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
_ROUNDS = 8  # of a Feistel network: no bias is seen in 200,000 permutations of 18 values or more


class DrawingTerm(Term):
    """Base of the terms that draw: masks, noises, negatives."""

    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed of what the term draws, which is a function of the epoch, the sample and its view too. Not given: the run's
    `seed`."""

    @property
    def computes_by_epoch(self) -> bool:
        """True: what it draws is a function of the epoch."""
        return True


@dataclass(frozen=True)
class DrawSource:
    """What a term's draws are a function of throughout a run. num_views: per sample, if views repeat."""

    seed: int = 0
    num_views: int | None = None

    @classmethod
    def of(cls, term: DrawingTerm, context: TermContext) -> DrawSource:
        """Return the source of a term: its own seed, or the run's."""
        return cls(context.seed if term.seed is None else term.seed, context.num_views)

    def draws(self, inputs: TermInputs, stream: int = 0) -> Draws:
        """Return the numbers for a micro-batch. stream: which of the term's draws (two streams are independent)."""
        return Draws(inputs, self.seed, stream, self.num_views)


class Draws:
    """The random numbers of one micro-batch: methods give [B,count], each row a function of the sample in its view.

    seed, stream, num_views: see `DrawSource`. Drawn again every whole epoch.
    """

    def __init__(self, inputs: TermInputs, seed: int, stream: int = 0, num_views: int | None = None) -> None:
        assert inputs.sample_ids is not None, "a term that draws must declare sample_ids"
        assert inputs.epoch is not None, "a term that draws reads TermInputs.epoch, which whoever makes it must fill"
        epoch = math.floor(inputs.epoch)
        self.rows = row_states(inputs.sample_ids, seed, stream, epoch)
        if inputs.views is not None:
            # View e is the one of epoch e where each sample is shown once: there the rows stay as they are.
            others = inputs.views - epoch if num_views is None else (inputs.views - epoch) % num_views
            self.rows = torch.where(others == 0, self.rows, mix(self.rows + others + _INCREMENT))

    def below(self, bounds: Tensor, count: int) -> Tensor:
        """Draw int64 in [0, bound), bounds [B]. The modulo's bias is below bound / 2^63."""
        return _shift(bits(self.rows, count), 1) % bounds[:, None]

    def order(self, count: int) -> Tensor:
        """Draw a permutation of 0 .. count - 1 in each row."""
        return bits(self.rows, count).argsort(dim=1)

    def distinct(self, bounds: Tensor, count: int, smallest: int | None = None) -> Tensor:
        """Draw different int64 in [0, bound), in random order: bounds [B], none of them below count.

        The first `count` values of a permutation of 0 .. bound - 1: a Feistel network on the smallest square that holds
        them, whose rounds add a random function of one half to the other (Black and Rogaway, "Ciphers with Arbitrary
        Finite Domains", CT-RSA 2002). A value outside the bound is passed through again. Bounds below 2^32.

        smallest: a lower limit of all bounds, if the host knows one. The expected passes are then made before the host
        asks the device, once as a rule, whether any value is left outside; they change no value that is inside.
        """
        if smallest is None:
            smallest = int(bounds.min())
        assert smallest >= count, "more different values than there are"
        side = bounds.double().sqrt().ceil().long()[:, None]
        values = self._permuted(torch.arange(count, device=bounds.device).expand(len(bounds), -1), side)
        for _ in range(expected_passes(smallest, len(bounds) * count)):
            values = torch.where(values >= bounds[:, None], self._permuted(values, side), values)
        while bool((outside := values >= bounds[:, None]).any()):
            values = torch.where(outside, self._permuted(values, side), values)
        return values

    def _permuted(self, values: Tensor, side: Tensor) -> Tensor:
        """Map each row of values in [0, side^2) by a permutation of its own."""
        left, right = values // side, values % side
        for key in bits(self.rows, _ROUNDS).T:
            added = (_shift(mix(key[:, None] ^ right), 33) * side) >> 31  # in [0, side), of 31 random bits
            total = left + added
            left, right = right, torch.where(total >= side, total - side, total)
        return left * side + right

    def integers(self, bound: int) -> Tensor:
        """Draw one int64 in [0, bound) per row: [B]."""
        return self.below(torch.full_like(self.rows, bound), 1).squeeze(1)

    def normals(self, count: int) -> Tensor:
        """Draw float32 from the standard normal distribution, by Box and Muller's transform."""
        radius, angle = uniforms(self.rows, 2 * count).chunk(2, dim=1)
        return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * math.pi * angle)


def expected_passes(smallest: int, number: int) -> int:
    """Return the number of passes after which fewer than 0.001 values are expected to be left outside.

    number: of values; smallest: the least of their bounds. A value of a square of s^2 numbers, the smallest that holds
    the bound, is outside with probability 1 - bound / s^2, which is less than 2 / (sqrt(bound) + 1).
    """
    outside = min(0.5, 2 / (math.sqrt(smallest) + 1))
    return max(0, math.ceil(math.log(1000 * number * outside) / -math.log(outside)))


def row_states(row_ids: Tensor, *key: int) -> Tensor:
    """Return the start of each row's counter: [B] int64."""
    state = mix(row_ids)
    for part in key:
        state = mix(state + part + _INCREMENT)
    return state


def bits(rows: Tensor, count: int) -> Tensor:
    """Return [B,count] int64 with all 64 bits random: the generator's first outputs from each state."""
    return mix(rows[:, None] + torch.arange(1, count + 1, device=rows.device) * _INCREMENT)


def uniforms(rows: Tensor, count: int) -> Tensor:
    """Return [B,count] float32 in [0, 1), multiples of 2^-24."""
    return _shift(bits(rows, count), 40).float() * 2.0**-24


def mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's mixing function, a bijection of 64-bit integers. Products wrap around, as they should."""
    x = (x ^ _shift(x, 30)) * _MULTIPLIER_1
    x = (x ^ _shift(x, 27)) * _MULTIPLIER_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, places: int) -> Tensor:
    """Shift to the right without repeating the sign bit, which torch's own shift does."""
    return (x >> places) & (2 ** (64 - places) - 1)

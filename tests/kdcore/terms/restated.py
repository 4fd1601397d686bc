"""Losses restated one sample, one class at a time, and the numbers that they are compared on."""

from __future__ import annotations

import math
from functools import partial

import torch

LABELS = torch.tensor([3, 0, 4, 1])


def logits(seed, shape=(4, 5)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


normal32 = partial(normal, dtype=torch.float32)


def softmax(row):
    powers = [math.exp(v) for v in row]
    return [p / sum(powers) for p in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def each(function):
    """A restatement of one sample, over a batch."""
    return lambda student, teacher: [function(i, s, t) for i, (s, t) in enumerate(zip(student, teacher, strict=True))]


def cosine(a, b):
    return a @ b / math.sqrt((a @ a) * (b @ b))


def plain_kd(i, s, t, temperature=3.0):
    return temperature**2 * kl(softmax(t / temperature), softmax(s / temperature))

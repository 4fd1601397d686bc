"""The augmentation policies: which operations a picture gets, how often, and at which levels.

A policy is named as its original names it, and drawn from random words given to it; see `pipelines.views.operations`
for the operations. Originals, with the code that defines the details:
    rand-m9-mstd0.5-inc1  RandAugment (Cubuk et al., arXiv 1909.13719) in timm's notation, `timm.data.auto_augment`
    ra-2-9                RandAugment as `torchvision.transforms.v2.RandAugment(num_ops=2, magnitude=9)`
    v0, v0r, original, originalr  AutoAugment in timm's notation (`-mstd0.5` for levels that deviate), `timm.data...`
    aa-imagenet, aa-cifar, aa-svhn  AutoAugment (Cubuk et al., arXiv 1805.09501), `torchvision...AutoAugment`
    trivial               TrivialAugmentWide (Mueller and Hutter, arXiv 2103.10158), `torchvision...TrivialAugmentWide`
    three                 3-Augment (Touvron et al., "DeiT III", arXiv 2204.07118), `augment.py` of its repository
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from math import pi
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdcore.errors import Refused
from pipelines.views import exact
from pipelines.views.operations import (
    THREE_AUGMENT,
    TIMM,
    TIMM_AUTO,
    TIMM_INCREASING,
    TORCHVISION,
    TORCHVISION_AUTO,
    TORCHVISION_WIDE,
    Operation,
)
from pipelines.views.sub_policies import SUB_POLICIES, TIMM_SUB_POLICIES, SubPolicies

Floats = NDArray[np.float64]
Colour = tuple[int, int, int]

WORDS = 8  # random words set aside for an operation of a policy: five are used
_BINS = 31  # levels of torchvision's RandAugment and TrivialAugment: 0/30, 1/30, ..., 1
_IMAGENET_MEAN = (124, 116, 104)  # of R, G, B: round(255 * (.485, .456, .406))
_BLACK = (0, 0, 0)
_EXAMPLES = (
    *("rand-m9-mstd0.5-inc1", "ra-2-9", "trivial", "three"),
    *(f"aa-{name}" for name in SUB_POLICIES),
    *TIMM_SUB_POLICIES,
)


@dataclass(frozen=True)
class Choice:
    """An operation as a policy applies it: with which probability and at which level in [0, 1]."""

    operation: Operation
    probability: float = 1.0
    level: float = 1.0


@dataclass(frozen=True)
class AutoAugment:
    """A policy: `num_operations` operations in turn, each one of the choices.

    choices: rows of one operation for every turn; together: whether all turns take the same row (AutoAugment's
    sub-policies) or each turn its own (RandAugment). levels: "fixed": as the choice says; "normal": a deviation of
    `level_std` from it, held to [0, 1]; "uniform": between 0 and it; "bins": one of 31 at equal distances.
    fill: the colour of what geometric operations bring in from outside.
    """

    choices: tuple[tuple[Choice, ...], ...]
    together: bool = False
    levels: Literal["fixed", "normal", "uniform", "bins"] = "fixed"
    level_std: float = 0.0
    fill: Colour = _BLACK

    @property
    def num_operations(self) -> int:
        return len(self.choices[0])

    def draw(self, uniform: Floats, height: int, width: int) -> tuple[NDArray[np.int64], Floats]:
        """Return the kinds [B,T] and arguments [B,T] of each picture's operations, one column per turn.

        uniform [B, WORDS * T] in [0, 1); height, width: of the pictures that are changed.
        """
        turns = uniform.reshape(len(uniform), self.num_operations, WORDS)
        kinds = np.zeros(turns.shape[:2], dtype=np.int64)
        arguments = np.zeros(turns.shape[:2])
        for turn in range(self.num_operations):
            u = turns[:, turn]
            row = np.floor(turns[:, 0 if self.together else turn, 0] * len(self.choices)).astype(np.int64)
            for number, choices in enumerate(self.choices):
                choice = choices[turn]
                mine = np.flatnonzero((row == number) & (u[:, 1] < choice.probability))
                level = self._levels(choice.level, u[mine, 3:5])
                kinds[mine, turn] = choice.operation.kind
                arguments[mine, turn] = choice.operation.argument(level, u[mine, 2] < 0.5, height, width)
        return kinds, arguments

    def _levels(self, level: float, uniform: Floats) -> Floats:
        """Return levels [B] around a choice's own, from uniform [B,2]."""
        if self.levels == "normal":
            return np.clip(level + self.level_std * standard_normal(uniform), 0.0, 1.0)
        if self.levels == "uniform":
            return level * uniform[:, 0]
        if self.levels == "bins":
            return np.floor(uniform[:, 0] * _BINS) / (_BINS - 1)
        return np.full(len(uniform), level)


def standard_normal(uniform: Floats) -> Floats:
    """Return draws from the standard normal distribution, by the method of Box and Muller: [B,2] in [0, 1) -> [B]."""
    radius = np.sqrt(-2 * exact.log(uniform[:, 0] + 2.0**-33))  # of the middle of each 2^-32: never 0
    return radius * exact.sin_cos(2 * pi * (uniform[:, 1] - 0.5))[1]


@lru_cache(maxsize=64)
def auto_augment(name: str) -> AutoAugment:
    """Return the policy of a name. Refused for an unknown name, with the nearest known ones."""
    head, *rest = name.split("-")
    if head == "rand" and rest:
        return _timm_rand_augment(name, rest)
    if head in TIMM_SUB_POLICIES:
        return _timm_auto_augment(name, head, rest)
    if head == "ra" and len(rest) == 2 and all(part.isdecimal() for part in rest):
        return _torchvision_rand_augment(name, int(rest[0]), int(rest[1]))
    if head == "aa" and "-".join(rest) in SUB_POLICIES:
        return AutoAugment(_rows(SUB_POLICIES[rest[0]], TORCHVISION_AUTO, 9), together=True)
    if name == "trivial":
        return AutoAugment(tuple((Choice(operation),) for operation in TORCHVISION_WIDE), levels="bins")
    if name == "three":
        return AutoAugment(tuple((Choice(operation),) for operation in THREE_AUGMENT), levels="uniform")
    near = get_close_matches(name, _EXAMPLES, n=1) or [one for one in _EXAMPLES if one[:2] == name[:2]] or _EXAMPLES
    raise Refused(f"there is no augmentation policy {name!r}; take {' or '.join(near)}")


def _timm_rand_augment(name: str, settings: list[str]) -> AutoAugment:
    """Return timm's RandAugment of settings such as ["m9", "mstd0.5", "inc1"]; its defaults where one is not given."""
    values = {"m": 10.0, "n": 2.0, "p": 0.5, "mstd": 0.0, "inc": 0.0}
    for setting in settings:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", setting)
        if match is None or match[1] not in values:
            raise Refused(
                f"{setting!r} is not a setting of {name!r}; give m (magnitude, at most 10), n (number of operations), "
                "p (probability of each), mstd (deviation of the magnitude; above 100: uniform) or inc1 (increasing)"
            )
        values[match[1]] = float(match[2])
    if values["m"] > 10 or not 1 <= values["n"] <= 16 or values["n"] % 1 or values["p"] > 1:
        raise Refused(f"{name!r} is out of range; give m of at most 10, n of 1 to 16, p of at most 1")
    operations = TIMM_INCREASING if values["inc"] else TIMM
    rows = tuple((Choice(operation, values["p"], values["m"] / 10),) * int(values["n"]) for operation in operations)
    return AutoAugment(rows, **_deviation(values["mstd"]), fill=_IMAGENET_MEAN)


def _timm_auto_augment(name: str, policy: str, settings: list[str]) -> AutoAugment:
    """Return timm's AutoAugment of one of its policies with settings of at most ["mstd0.5"]."""
    match = re.fullmatch(r"(?:mstd(\d+(?:\.\d+)?))?", "-".join(settings))
    if match is None:
        raise Refused(
            f"{'-'.join(settings)!r} is not a setting of {name!r}; give mstd (deviation of the levels) or none"
        )
    rows = _rows(TIMM_SUB_POLICIES[policy], TIMM_AUTO[policy], 10)
    return AutoAugment(rows, together=True, **_deviation(float(match[1] or 0)), fill=_IMAGENET_MEAN)


def _deviation(of_ten: float) -> dict[str, Any]:
    """Return how levels deviate, from timm's `mstd`, whose levels go to 10: above 100 it stands for uniform ones."""
    return {"levels": "uniform" if of_ten > 100 else "normal" if of_ten else "fixed", "level_std": of_ten / 10}


def _torchvision_rand_augment(name: str, num_operations: int, magnitude: int) -> AutoAugment:
    if not 1 <= num_operations <= 16 or magnitude >= _BINS:
        raise Refused(
            f"{name!r} is out of range; give ra-N-M with N of 1 to 16 operations and a magnitude M of 0 to 30"
        )
    rows = ((Choice(operation, level=magnitude / (_BINS - 1)),) * num_operations for operation in TORCHVISION)
    return AutoAugment(tuple(rows))


def _rows(sub_policies: SubPolicies, operations: tuple[Operation, ...], highest: int) -> tuple[tuple[Choice, ...], ...]:
    """Return sub-policies as choices among operations; highest: the level that stands for 1."""
    of_kind = {operation.kind: operation for operation in operations}
    return tuple(
        tuple(Choice(of_kind[kind], probability, level / highest) for kind, probability, level in sub_policy)
        for sub_policy in sub_policies
    )

"""The axes of a sweep's space: a list of values, a range of numbers, or which taps are paired."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator, model_validator

from kdcore.errors import Refused, shortened
from kdcore.section import Section, refuse_idle
from kdcore.terms.base import Pair

LAYERS = "layers"  # the axis that pairs taps


class Values(Section):
    """One of several values."""

    values: tuple[Any, ...] = Field(min_length=1)
    """The values, in the order in which a grid goes through them."""

    @field_validator("values")
    @classmethod
    def _check_values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(values)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value at random."""
        return self.values[rng.integers(len(self.values))]

    def value(self, drawn: Any) -> Any:
        """Return the value that a search has drawn: it draws the value's index, since a value may be a list."""
        return self.values[drawn]

    @property
    def size(self) -> float:
        """The number of values."""
        return len(self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether the axis can be searched at all: here all of them."""
        return self.values


class Range(Section):
    """A number within [low, high]."""

    low: float
    """The lowest value."""

    high: float
    """The highest value."""

    @model_validator(mode="after")
    def _check(self) -> Range:
        if not self.low < self.high:
            raise Refused(f"a range goes from low to high, not from {self.low} to {self.high}")
        return self

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value at random."""
        return float(rng.uniform(self.low, self.high))

    def value(self, drawn: Any) -> Any:
        """Return the value that a search has drawn, as the recipe takes it."""
        return drawn

    @property
    def size(self) -> float:
        """The number of values: of a range of numbers, infinite."""
        return math.inf

    @property
    def ends(self) -> tuple[Any, ...]:
        """The lowest and the highest value: where both are valid, so are those between them."""
        return (self.value(self.low), self.value(self.high))


class LogRange(Range):
    """A number within [low, high] whose logarithm is uniform."""

    low: float = Field(gt=0)
    """The lowest value, above 0."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value at random, its logarithm uniformly."""
        return float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))


class Integers(Range):
    """A whole number within [low, high], both included."""

    @field_validator("low", "high")
    @classmethod
    def _check_whole(cls, end: float) -> float:
        if not end.is_integer():
            raise Refused(f"integers go from one whole number to another, and {end} is not one")
        return end

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a whole number at random."""
        return int(rng.integers(int(self.low), int(self.high) + 1))

    def value(self, drawn: Any) -> Any:
        """Return the value that a search has drawn, as a whole number."""
        return int(drawn)

    @property
    def size(self) -> float:
        """The number of whole numbers from low to high."""
        return int(self.high) - int(self.low) + 1


class Pairings(Section):
    """Which taps are paired: choices that are given, or those that the teacher's layers of highest quality allow."""

    pairs: tuple[Annotated[tuple[Pair, ...], Field(min_length=1)], ...] | None = Field(default=None, min_length=1)
    """The choices, each a list of pairs of a student's and a teacher's tap."""

    ranked: int | None = Field(default=None, ge=1)
    """Instead of pairs: choose among this many of the teacher's taps, those of the highest quality Q."""

    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1,), min_length=1)
    """How many of the ranked taps a choice takes at once; they are paired with the student's by depth."""

    taps: tuple[str, ...] | None = None
    """The teacher's taps that are ranked; left out, its blocks."""

    student_taps: tuple[str, ...] | None = None
    """The student's taps that can be paired; left out, its blocks."""

    images: int = Field(default=5000, ge=2)
    """The number of training images on which Q is measured."""

    @field_validator("pairs", "sizes")
    @classmethod
    def _check_choices(cls, choices: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        return None if choices is None else distinct(choices)

    @model_validator(mode="after")
    def _check(self) -> Pairings:
        if (self.pairs is None) == (self.ranked is None):
            raise Refused("give either pairs: [[{student: TAP, teacher: TAP}, ...], ...] or ranked: N")
        if self.ranked is None:
            refuse_idle(self, ["sizes", "taps", "student_taps"], "ranked: N, whose choices it makes")
        if self.ranked is not None and max(self.sizes) > self.ranked:
            raise Refused(f"sizes {max(self.sizes)} of the {self.ranked} best layers; raise ranked")
        return self


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values. Refused where one is listed twice: its runs would be, too."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise Refused(f"{shortened(repr(value))} is listed twice; remove it")
    return values


RANGES: dict[str, type[Range]] = {"uniform": Range, "log_uniform": LogRange, "integers": Integers}
Axis = Values | Range


def parse_axis(given: Any) -> Any:
    """Build an axis from a list of values, or from a mapping that names a range or says which layers."""
    if isinstance(given, list) and given:
        return Values(values=tuple(given))
    if isinstance(given, Mapping) and len(given) == 1 and (kind := next(iter(given))) in RANGES:
        ends = given[kind]
        if not isinstance(ends, list) or len(ends) != 2:
            raise Refused(f"{kind} takes [low, high], not {shortened(repr(ends))}")
        return RANGES[kind](low=ends[0], high=ends[1])
    if isinstance(given, Mapping) and given.keys() & {"pairs", "ranked"}:
        return Pairings.model_validate(given)
    if isinstance(given, Values | Range | Pairings):
        return given
    raise Refused(f"write a list of values, or {{{' | '.join(RANGES)}: [low, high]}}; got {shortened(repr(given))}")


def written_axis(axis: Axis | Pairings) -> Any:
    """Return an axis as SPACE.yaml has it: the inverse of `parse_axis`."""
    if isinstance(axis, Values):
        return list(axis.values)
    if isinstance(axis, Range):
        kind = next(name for name, known in RANGES.items() if type(axis) is known)
        return {kind: [axis.low, axis.high]}
    return axis.model_dump(mode="json", exclude_none=True)

"""What a sweep searches and how: a strict model of a YAML file, beside the recipe that it varies.

name: digits
search: grid                          # or random, or tpe, with num_points
seeds: [0, 1]
stop: {rule: asha, grace_epochs: 2}   # left out: every run goes to its end
space:
  temperature: [1, 2, 4, 8]
  weight: {log_uniform: [0.1, 10]}
  layers: {ranked: 4}
  optimizer.lr: [0.05, 0.1]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from cluster.recipe import validated
from cluster.recipe_files import is_file, read_recipe
from cluster.rules import check_not_reserved
from cluster.sweep.stoppers import Mode, Stopper, parse_stopper
from kdcore.errors import Refused, shortened
from kdcore.located import local_file
from kdcore.section import Section, refuse_idle
from kdcore.terms.base import Pair

# What the search decides itself, or what would make scores incomparable.
RESERVED = {
    "name": "the runs are named by the sweep",
    "output_dir": "the runs lie in the sweep's folder",
    "seed": "give seeds: [0, 1, ...] beside the space",
    "teacher.source": "give teacher: cache or online beside the space",
    "cache.dir": "all runs read one cache",
    "data.held_out": "scores on different images cannot be compared",
}
METRICS = ("top1", "top5", "mAP", "f1", "agreement", "nll", "kl")
OF_KIND = {False: ("top1", "top5"), True: ("mAP", "f1")}  # metrics of images with one label, and with several
LOWER_IS_BETTER = ("nll", "kl", "ece", "loss")
LAYERS = "layers"  # the axis of a space that pairs taps


def mode_of(metric: str) -> Mode:
    """Return which values of a metric are better, the smallest or the largest."""
    return "min" if metric.endswith(LOWER_IS_BETTER) else "max"


class Values(Section):
    """One of several values."""

    values: tuple[Any, ...] = Field(min_length=1)
    """The values, in the order in which a grid goes through them."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value at random."""
        return self.values[rng.integers(len(self.values))]

    def value(self, drawn: Any) -> Any:
        """Return the value that a search has drawn: it draws the value's number, for a value may be a list."""
        return self.values[drawn]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that show whether the axis can be searched at all: of several, each."""
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
    def ends(self) -> tuple[Any, ...]:
        """The lowest and the highest value: where both make a run, those between them do."""
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

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a whole number at random."""
        return int(rng.integers(int(self.low), int(self.high) + 1))

    def value(self, drawn: Any) -> Any:
        """Return the value that a search has drawn, as a whole number."""
        return int(drawn)


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

    @model_validator(mode="after")
    def _check(self) -> Pairings:
        if (self.pairs is None) == (self.ranked is None):
            raise Refused("give either pairs: [[{student: TAP, teacher: TAP}, ...], ...] or ranked: N")
        if self.ranked is None:
            refuse_idle(self, ["sizes"], "ranked: N, whose choices it makes")
        if self.ranked is not None and max(self.sizes) > self.ranked:
            raise Refused(f"sizes {max(self.sizes)} of the {self.ranked} best layers; raise ranked")
        return self


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


class SweepConfig(Section):
    """A sweep: every point of a space with every seed.

    space: {field of the recipe, dotted: an axis}. Short words: `temperature` of every term on logits (gamma is its
    inverse), `weight` of the one term that reads the teacher, `layers` of the terms with pairs.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The sweep's name, and of its folder below the recipe's output_dir; started again it goes on."""

    space: dict[str, Annotated[SerializeAsAny[Axis | Pairings], BeforeValidator(parse_axis)]] = Field(min_length=1)
    """What is searched: a field of the recipe, dotted, or temperature, weight or layers, with its values or range."""

    search: Literal["grid", "random", "tpe"] = "grid"
    """How points are found: every combination of the values, at random, or by a tree-structured Parzen estimator."""

    num_points: int | None = Field(default=None, ge=1)
    """How many points random and tpe look at."""

    seeds: tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = Field(default=(0,), min_length=1)
    """The seeds with which every point is run. All of them show the same views."""

    metric: str = "held_out/top1"
    """What is compared, measured on held-out training images; of images with several labels `held_out/mAP`."""

    stop: Annotated[SerializeAsAny[Stopper] | None, BeforeValidator(parse_stopper)] = None
    """The rule that stops runs early, such as {rule: asha}; left out, every run goes to its end."""

    concurrent: int | None = Field(default=None, ge=1)
    """Runs at a time; left out, as many as the cluster has room for."""

    teacher: Literal["cache", "online"] = "cache"
    """Where the teacher's outputs come from: one cache that all runs read, or the teacher beside every student."""

    max_caches: int = Field(default=1, ge=1)
    """Points that show other views need other caches; more than this many are refused."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """The seed of the search itself."""

    @property
    def mode(self) -> Mode:
        """Which scores are better."""
        return mode_of(self.metric)

    @model_validator(mode="before")
    @classmethod
    def _check_former_key(cls, given: Any) -> Any:
        """Refuse `asha`, now a rule below `stop`; leave it out where it was off, as in earlier sweeps."""
        if not isinstance(given, Mapping) or "asha" not in given:
            return given
        if given["asha"] is not None:
            rule = {"rule": "asha", **(given["asha"] if isinstance(given["asha"], Mapping) else {})}
            written = ", ".join(f"{name}: {value}" for name, value in rule.items())
            raise Refused(f"asha is one of several stopping rules; write stop: {{{written}}}")
        return {name: value for name, value in given.items() if name != "asha"}

    @field_validator("space", mode="before")
    @classmethod
    def _read_layers(cls, given: Any) -> Any:
        """Read a list of layers as the choices that it gives: their quality is measured as that of any others."""
        if isinstance(given, Mapping) and isinstance(given.get(LAYERS), list):
            return {**given, LAYERS: {"pairs": given[LAYERS]}}
        return given

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        check_not_reserved(name)
        return name

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        if metric.startswith("val/"):
            raise Refused(
                f"{metric} would choose on the validation set, whose accuracy would then mean nothing; take "
                "held_out/top1, and keep back training images with data.held_out=0.02"
            )
        if metric not in (known := [f"held_out/{name}" for name in METRICS]):
            raise Refused(f"{shortened(metric)!r} is no metric; take one of {', '.join(known)}")
        return metric

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        for field, remedy in RESERVED.items():
            if field in self.space:
                raise Refused(f"{field} cannot be searched: {remedy}")
        if len(set(self.seeds)) < len(self.seeds):
            raise Refused(f"seeds {list(self.seeds)}: one stands there twice")
        ranges = [field for field, axis in self.space.items() if isinstance(axis, Range)]
        if self.search == "grid" and ranges:
            raise Refused(f"{ranges[0]} is a range, which a grid cannot list; give values, or search: random or tpe")
        if self.search == "grid":
            refuse_idle(self, ["seed"], "search: random or tpe, for a grid draws nothing")
        if self.teacher == "online":
            refuse_idle(self, ["max_caches"], "teacher: cache")
        if (self.search == "grid") != (self.num_points is None):
            raise Refused(
                "a grid has as many points as it has; leave num_points out"
                if self.search == "grid"
                else f"search: {self.search} goes on for ever; say how many points with num_points"
            )
        return self


def load_sweep(path: str | Path) -> SweepConfig:
    """Read the sweep that a YAML file describes. Refused in one line for what is wrong."""
    found = local_file(str(path))
    if not is_file(found):
        raise Refused(f"--space {path}: no such file; `python -m ops fields sweep` shows what it may hold")
    return validated(SweepConfig, read_recipe(found), str(path))

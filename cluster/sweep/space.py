"""Points of a sweep, and the runs that they stand for.

A point is {field: value} as in the sweep's space, plain values; a trial is a point with a seed.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, SerializeAsAny

from cluster.recipe.config import RunConfig
from cluster.recipe.field_names import near_names
from cluster.recipe.paths import absolute
from cluster.recipe.reading import assign, parse, validated
from cluster.sweep.axes import LAYERS as LAYERS
from cluster.sweep.axes import Axis, Pairings, Values
from cluster.sweep.config import SweepConfig
from cluster.tracking.mlflow_tracker import tracking_uri
from kdcore.errors import Refused, shortened
from kdcore.quality.collect import LayerScores as LayerScores
from kdcore.quality.collect import recommend_pairs
from kdcore.section import Section
from kdcore.terms import Term, parse_term
from kdcore.terms.base import Pair
from kdcore.terms.features import PairedTerm
from kdcore.terms.logits import LogitTerm

Point = dict[str, Any]
MOST_PERMUTED = 10_000_000  # points of a space: their numbers take 80 MB


@dataclass(frozen=True)
class Space:
    """A sweep's axes with the layers resolved: each is a list of values or a range of numbers."""

    sweep: SweepConfig
    axes: Mapping[str, Axis]

    def points(self) -> list[Point] | None:
        """Return the points in order; None where the search makes them as it goes."""
        if self.sweep.search == "tpe":
            return None
        return self.grid_points() if self.sweep.search == "grid" else self.random_points()

    def grid_points(self) -> list[Point]:
        """Return every combination of the values; the last axis changes fastest."""
        values = (axis.ends for axis in self.axes.values())
        return [dict(zip(self.axes, combination, strict=True)) for combination in itertools.product(*values)]

    def random_points(self) -> list[Point]:
        """Draw num_points points at random, none of them twice. Refused where the space has fewer."""
        assert self.sweep.num_points is not None, "checked by SweepConfig"
        rng, num = np.random.default_rng(self.sweep.seed), self.sweep.num_points
        size = math.prod(axis.size for axis in self.axes.values())
        if num > size:
            raise Refused(f"num_points is {num}, but the space has only {size} points; set num_points={size}")
        lists = [axis.values for axis in self.axes.values() if isinstance(axis, Values)]
        if len(lists) == len(self.axes) and size <= MOST_PERMUTED:
            chosen = np.unravel_index(rng.permutation(int(size))[:num], [len(values) for values in lists])
            drawn = ([values[i] for values, i in zip(lists, one, strict=True)] for one in zip(*chosen, strict=True))
            return [dict(zip(self.axes, values, strict=True)) for values in drawn]
        points: list[Point] = []
        while len(points) < num:
            point = {name: axis.draw(rng) for name, axis in self.axes.items()}
            if point not in points:
                points.append(point)
        return points

    def probes(self) -> list[Point]:
        """Return points of one field each, which together try every value, or both ends of a range."""
        return [{name: value} for name, axis in self.axes.items() for value in axis.ends]


def build_space(sweep: SweepConfig, scores: LayerScores | None) -> Space:
    """Return the sweep's space, its choices of layers made from the layers' scores. Refused for an unknown field."""
    for name in sweep.space:
        if name not in SHORT_WORDS and name.partition(".")[0] not in RunConfig.model_fields:
            near = difflib.get_close_matches(name.rpartition(".")[2], SHORT_WORDS, n=1, cutoff=0.6)
            near = near or near_names(RunConfig, name, list(SHORT_WORDS))
            raise Refused(f"space: a recipe has no field {name!r}; did you mean {', '.join(near)}?")
    axes: dict[str, Axis] = {
        name: Values(values=tuple(layer_choices_of(axis, scores))) if isinstance(axis, Pairings) else axis
        for name, axis in sweep.space.items()
    }
    return Space(sweep, axes)


def layer_choices_of(axis: Pairings, scores: LayerScores | None) -> list[list[dict[str, str]]]:
    """Return the choices of layers, those of the highest mean Q first where they are ranked."""
    if axis.pairs is not None:
        return [as_mappings(pairs) for pairs in axis.pairs]
    assert axis.ranked is not None, "checked by Pairings"
    assert scores is not None, "the caller scores the layers that are to be ranked"
    if axis.ranked > len(scores.quality):
        raise Refused(f"layers: ranked {axis.ranked}, but the teacher has {len(scores.quality)} layers to rank")
    best = sorted(scores.quality, key=lambda tap: -scores.quality[tap].q)[: axis.ranked]
    in_depth = [tap for tap in scores.quality if tap in best]
    chosen = [
        as_mappings(recommend_pairs(scores.student_taps, {tap: scores.quality[tap] for tap in taps}, size))
        for size in axis.sizes
        for taps in itertools.combinations(in_depth, size)
    ]
    return sorted(chosen, key=lambda pairs: -scores.of(pairs))


def as_mappings(pairs: Sequence[Pair]) -> list[dict[str, str]]:
    """Return pairs as a recipe has them."""
    return [pair.model_dump() for pair in pairs]


def parent_of(recipe: RunConfig, sweep: SweepConfig) -> RunConfig:
    """Return a sweep itself as MLflow and its folder know it: the recipe under the sweep's name."""
    return recipe.model_copy(update={"name": sweep.name})


def shared_recipe(recipe: RunConfig, sweep: SweepConfig) -> RunConfig:
    """Return what all runs of a sweep share: the folder, the MLflow store, the views and the place of a cache.

    Refused where no training images are held out to compare on, or where weights are chosen on other images.
    """
    if recipe.data.held_out == 0:
        raise Refused(
            f"{sweep.metric} is measured on held-out training images, but data.held_out is 0; set data.held_out=0.02"
        )
    if recipe.train.select == "val":
        raise Refused(
            "train.select is val: a run would end with the weights that are best on the validation set, and a sweep "
            f"compares runs by {sweep.metric}; set train.select=held_out or train.select=last"
        )
    data = recipe.model_dump(mode="json")
    data["output_dir"] = f"{recipe.output_dir}/{sweep.name}"
    data["about"] = None  # no point of a space is what the recipe was published as
    data["view_seed"] = recipe.plan_seed
    data["tracking"]["uri"] = tracking_uri(parent_of(recipe, sweep))
    if recipe.all_teachers:
        for one in data["teachers"] or [data["teacher"]]:
            one["source"] = "online"  # until there is a cache
        if sweep.teacher == "cache":
            data["cache"] = data["cache"] or {"dir": f"{data['output_dir']}/cache"}
    if sweep.stop:
        sweep.stop.check(recipe.train.epochs)
    return parse(data, "the sweep's runs")


def run_config(base: RunConfig, point: Point, name: str, seed: int) -> RunConfig:
    """Return the run of a point and a seed. Refused for a point that makes no run."""
    data = base.model_dump(mode="json")
    data |= {"name": name, "seed": seed}
    set_point(data, point)
    return absolute(parse(data, describe(point)), Path.cwd())


def with_all_views(config: RunConfig, least: int) -> RunConfig:
    """Return a run with as many views as it would see without a cache, unless their number is given.

    least: the epochs of the sweep's recipe; runs that show fewer views have this number all the same, as in sweeps
    that have begun. Refused where rare classes are shown more often: epochs do not say how many views that takes.
    """
    views = config.views
    if views.num_views is not None:
        return config
    if config.data.sampling != "images":
        raise Refused(
            f"data.sampling={config.data.sampling} shows rare images more often than once an epoch, so the "
            "epochs do not say how many views a cache must hold; set views.num_views (showing r of an image is then "
            "its view `r mod num_views`), or teacher: online beside the space"
        )
    shown = max(least, config.train.epochs * views.repeats)
    data = config.model_dump(mode="json")
    data["views"]["num_views"] = -(-shown // views.repeats) * views.repeats
    return parse(data, config.name)


def set_point(data: dict[str, Any], point: Point) -> dict[str, list[str]]:
    """Set a point's values in a recipe's mapping, in place; return {axis: the fields that it has set}, in that order.

    Whole sections come before their fields, and short words last: they stand for fields of the method as set by then.
    """
    done = {}
    for axis in sorted(point, key=lambda axis: (axis in SHORT_WORDS, axis.count("."))):
        word, value = SHORT_WORDS.get(axis), point[axis]
        values = {axis: value} if word is None else word(terms_of(data, point), value)
        for field, one in values.items():
            assign(data, field, copy.deepcopy(one))  # a later axis may set a part of it, and the point must not change
        done[axis] = list(values)
    return done


def refuse_overwriting(base: RunConfig, space: Space) -> None:
    """Refuse two axes of which one overwrites all that the other sets, whose values would be in no run."""
    first = {axis: values.ends[0] for axis, values in space.axes.items()}
    try:
        done = set_point(base.model_dump(mode="json"), first)
    except Refused:
        return  # it makes no run, which is refused elsewhere
    for (earlier, fields), (later, others) in itertools.combinations(done.items(), 2):
        for field, other in itertools.product(fields, others):
            if f"{field}.".startswith(f"{other}."):
                raise Refused(f"space: {earlier} and {later} both set {field}; take one of them out")


class Method(Section):
    """The terms of a recipe, whatever else is in it."""

    method: tuple[Annotated[SerializeAsAny[Term], BeforeValidator(parse_term)], ...] = Field(min_length=1)
    """As in a recipe."""


def terms_of(data: Mapping[str, Any], point: Point) -> tuple[Term, ...]:
    """Return the terms of a recipe's mapping. Refused, with the point, for what is wrong with them."""
    return validated(Method, {"method": data["method"]}, describe(point)).method


def temperature_fields(method: Sequence[Term], temperature: float) -> dict[str, Any]:
    """Return the temperature of every term on logits; of those that have a gamma instead, its inverse."""
    terms = {i: term for i, term in enumerate(method) if isinstance(term, LogitTerm)}
    if not terms:
        raise Refused("temperature: the recipe has no term on logits; name the field, such as method.1.temperature")
    if not isinstance(temperature, int | float) or temperature <= 0:
        raise Refused(f"temperature: {shortened(repr(temperature))} is not a number above 0")
    fields = {}
    for i, term in terms.items():
        if "gamma" in type(term).model_fields:
            fields[f"method.{i}.gamma"] = 1 / temperature
        else:
            fields[f"method.{i}.temperature"] = temperature
    return fields


def weight_field(method: Sequence[Term], weight: float) -> dict[str, Any]:
    """Return the weight of the one term that reads the teacher."""
    numbers = [i for i, term in enumerate(method) if term.needs().reads_teacher]
    if len(numbers) != 1:
        fields = ", ".join(f"method.{i}.weight" for i in numbers) or "none"
        raise Refused(f"weight: the recipe has {len(numbers)} terms that read a teacher ({fields}); name the field")
    return {f"method.{numbers[0]}.weight": weight}


def layer_fields(method: Sequence[Term], pairs: list[dict[str, str]]) -> dict[str, Any]:
    """Return the pairs of every term that has pairs."""
    numbers = [i for i, term in enumerate(method) if isinstance(term, PairedTerm)]
    if not numbers:
        raise Refused("layers: the recipe has no term with pairs; add one, such as feature_mse")
    return {f"method.{i}.pairs": pairs for i in numbers}


ShortWord = Callable[[Sequence[Term], Any], dict[str, Any]]  # returns {field of the recipe: its value}
SHORT_WORDS: dict[str, ShortWord] = {"temperature": temperature_fields, "weight": weight_field, LAYERS: layer_fields}


def label(value: Any) -> str:
    """Return a value as people read it: numbers short, pairs of taps as student<teacher."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list) and value and all(isinstance(v, Mapping) and "teacher" in v for v in value):
        return " ".join(f"{pair['student']}<{pair['teacher']}" for pair in value)
    return str(value)


def describe(point: Point) -> str:
    """Return a point as people read it: 'temperature 4, weight 0.1'."""
    return ", ".join(f"{field} {label(value)}" for field, value in point.items())


def num_points(space: Space) -> int:
    """Return the number of points that the search will try."""
    if space.sweep.num_points is not None:
        return space.sweep.num_points
    return math.prod([len(axis.ends) for axis in space.axes.values()])

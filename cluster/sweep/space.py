"""Points of a sweep, and the runs that they stand for.

A point is {field: value} as in the sweep's space, plain values; a trial is a point with a seed.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import RunConfig
from cluster.field_names import near_names
from cluster.recipe import assign, parse
from cluster.recipe_paths import absolute
from cluster.sweep.config import LAYERS as LAYERS
from cluster.sweep.config import Axis, Pairings, SweepConfig, Values
from cluster.tracking.mlflow_tracker import tracking_uri
from kdcore.errors import Refused
from kdcore.quality.collect import LayerScores as LayerScores
from kdcore.quality.collect import recommend_pairs
from kdcore.terms import parse_term
from kdcore.terms.base import Pair
from kdcore.terms.features import PairedTerm
from kdcore.terms.logits import LogitTerm

Point = dict[str, Any]


@dataclass(frozen=True)
class Space:
    """A sweep's axes with the layers settled: each is a list of values or a range of numbers."""

    sweep: SweepConfig
    axes: Mapping[str, Axis]

    def points(self) -> list[Point] | None:
        """Return the points in order; None where the search makes them up as it goes."""
        if self.sweep.search == "tpe":
            return None
        return self.grid_points() if self.sweep.search == "grid" else self.random_points()

    def grid_points(self) -> list[Point]:
        """Return every combination of the values; the last axis changes fastest."""
        values = (axis.ends for axis in self.axes.values())
        return [dict(zip(self.axes, combination, strict=True)) for combination in itertools.product(*values)]

    def random_points(self) -> list[Point]:
        """Draw num_points points at random: no point of a finite space twice."""
        assert self.sweep.num_points is not None, "checked by SweepConfig"
        rng, num = np.random.default_rng(self.sweep.seed), self.sweep.num_points
        if not all(isinstance(axis, Values) for axis in self.axes.values()):
            return [{name: axis.draw(rng) for name, axis in self.axes.items()} for _ in range(num)]
        grid = self.grid_points()
        if num > len(grid):
            raise Refused(f"num_points is {num}, but the space has only {len(grid)} points; take search: grid")
        return [grid[i] for i in rng.permutation(len(grid))[:num]]

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


def shared_recipe(recipe: RunConfig, sweep: SweepConfig) -> RunConfig:
    """Return what all runs of a sweep share: the folder, the MLflow store, the views and the place of a cache.

    Refused where no training images are held out to compare on.
    """
    if recipe.data.held_out == 0:
        raise Refused(
            f"{sweep.metric} is measured on held-out training images, but data.held_out is 0; set data.held_out=0.02"
        )
    data = recipe.model_dump(mode="json")
    data["output_dir"] = f"{recipe.output_dir}/{sweep.name}"
    data["about"] = None  # no point of a space is what the recipe was published as
    data["view_seed"] = recipe.plan_seed
    data["tracking"]["uri"] = tracking_uri(recipe.model_copy(update={"name": sweep.name}))
    if recipe.all_teachers:
        for one in data["teachers"] or [data["teacher"]]:
            one["source"] = "online"  # until there is a cache
        if sweep.teacher == "cache":
            # As many views as epochs are what the run would see without a cache.
            data["views"]["num_views"] = recipe.views.num_views or recipe.train.epochs
            data["cache"] = data["cache"] or {"dir": f"{data['output_dir']}/cache"}
    if sweep.stop:
        sweep.stop.check(recipe.train.epochs)
    return parse(data, "the sweep's runs")


def run_config(base: RunConfig, point: Point, name: str, seed: int) -> RunConfig:
    """Return the run of a point and a seed. Refused for a point that makes no run."""
    data = base.model_dump(mode="json")
    data |= {"name": name, "seed": seed}
    for field, value in point.items():
        if field not in SHORT_WORDS:
            assign(data, field, value)
    for word in point.keys() & SHORT_WORDS.keys():
        SHORT_WORDS[word](data["method"], point[word])
    return absolute(parse(data, describe(point)), Path.cwd())


def set_temperature(method: list[dict[str, Any]], temperature: float) -> None:
    """Set the temperature of every term on logits; of those that have a gamma instead, its inverse."""
    terms = [term for term in method if isinstance(parse_term(term), LogitTerm)]
    if not terms:
        raise Refused("temperature: the recipe has no term on logits; name the field, such as method.1.temperature")
    for term in terms:
        if "gamma" in type(parse_term(term)).model_fields:
            term["gamma"] = 1 / temperature
        else:
            term["temperature"] = temperature


def set_weight(method: list[dict[str, Any]], weight: float) -> None:
    """Set the weight of the one term that reads the teacher."""
    numbers = [i for i, term in enumerate(method) if parse_term(term).needs().teacher]
    if len(numbers) != 1:
        fields = ", ".join(f"method.{i}.weight" for i in numbers) or "none"
        raise Refused(f"weight: the recipe has {len(numbers)} terms that read a teacher ({fields}); name the field")
    method[numbers[0]]["weight"] = weight


def set_layers(method: list[dict[str, Any]], pairs: list[dict[str, str]]) -> None:
    """Set the pairs of every term that has pairs."""
    terms = [term for term in method if isinstance(parse_term(term), PairedTerm)]
    if not terms:
        raise Refused("layers: the recipe has no term with pairs; add one, such as feature_mse")
    for term in terms:
        term["pairs"] = pairs


Setter = Callable[[list[dict[str, Any]], Any], None]
SHORT_WORDS: dict[str, Setter] = {"temperature": set_temperature, "weight": set_weight, LAYERS: set_layers}


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
    """Return how many points the search will look at."""
    if space.sweep.num_points is not None:
        return space.sweep.num_points
    return math.prod([len(axis.ends) for axis in space.axes.values()])

"""What a sweep searches and how: a strict model of a YAML file, separate from the recipe that it varies.

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

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from cluster.metric_names import VALIDATED, Mode, mode_of
from cluster.recipe.files import is_file, read_recipe
from cluster.recipe.reading import validated
from cluster.recipe.rules import check_not_reserved
from cluster.sweep.axes import LAYERS, Axis, Pairings, Range, parse_axis
from cluster.sweep.stoppers import Stopper, parse_stopper
from kdcore.errors import Refused, shortened
from kdcore.located import local_file
from kdcore.section import Section, refuse_idle

# What the search decides itself, or what would make scores incomparable.
RESERVED = {
    "name": "the runs are named by the sweep",
    "output_dir": "the runs lie in the sweep's folder",
    "seed": "give seeds: [0, 1, ...] beside the space",
    "teacher.source": "give teacher: cache or online beside the space",
    "cache.dir": "all runs read one cache",
    "data.held_out": "scores on different images cannot be compared",
    "train.select": "scores of weights chosen in different ways cannot be compared",
}


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
    """The seeds with which every point is run. All of them show the same views. More may be given later, unless stop or
    tpe decides by scores."""

    metric: str = "held_out/top1"
    """What is compared, measured on held-out training images; of images with several labels `held_out/mAP`."""

    stop: Annotated[SerializeAsAny[Stopper] | None, BeforeValidator(parse_stopper)] = None
    """The rule that stops runs early, such as {rule: asha}; left out, every run goes to its end."""

    concurrent: int | None = Field(default=None, ge=1)
    """Runs at a time; left out, as many as the cluster has room for."""

    teacher: Literal["cache", "online"] = "cache"
    """Where the teacher's outputs come from: one cache that all runs read, or the teacher beside each student."""

    max_caches: int = Field(default=1, ge=1)
    """Points that show other views need other caches; more than this many are refused."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """The seed of the search itself."""

    @property
    def mode(self) -> Mode:
        """Which scores are better."""
        return mode_of(self.metric)

    @property
    def decides_by(self) -> str | None:
        """What decides by the scores of earlier runs; None where nothing does, so that runs may be added."""
        if self.search == "tpe":
            return "search: tpe"
        return f"stop: {self.stop.rule}" if self.stop else None

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
        """Read a list of layers as the choices that it gives: their quality is measured like that of any others."""
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
        if metric not in (known := [f"held_out/{one.name}" for one in VALIDATED]):
            raise Refused(f"{shortened(metric)!r} is not a metric; take one of {', '.join(known)}")
        return metric

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        for field, remedy in RESERVED.items():
            if field in self.space:
                raise Refused(f"{field} cannot be searched: {remedy}")
        if len(set(self.seeds)) < len(self.seeds):
            raise Refused(f"seeds {list(self.seeds)}: one is listed twice; remove it")
        ranges = [field for field, axis in self.space.items() if isinstance(axis, Range)]
        if self.search == "grid" and ranges:
            raise Refused(f"{ranges[0]} is a range, which a grid cannot list; give values, or search: random or tpe")
        if self.search == "grid":
            refuse_idle(self, ["seed"], "search: random or tpe, for a grid draws nothing")
        if self.teacher == "online":
            refuse_idle(self, ["max_caches"], "teacher: cache")
        if (self.search == "grid") != (self.num_points is None):
            raise Refused(
                "the number of points in a grid is fixed; leave num_points out"
                if self.search == "grid"
                else f"search: {self.search} has no end; set num_points"
            )
        return self


def load_sweep(path: str | Path) -> SweepConfig:
    """Read the sweep that a YAML file describes. Refused in one line that says what is wrong."""
    found = local_file(str(path))
    if not is_file(found):
        raise Refused(f"--space {path}: no such file; `python -m ops fields sweep` shows what it may hold")
    return validated(SweepConfig, read_recipe(found), str(path))

"""Runs as MLflow holds them: which belong together, also over changes of what a recipe can say."""

from typing import Any

import pytest

from cluster.config import RunConfig
from cluster.recipe import parse
from cluster.tracking.fields import flat_fields
from ops.defaults import with_defaults
from ops.history import Run, grouped, siblings

METHOD = [
    {"term": "ce", "weight": 1.0},
    {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": "layer1", "teacher": "layer2"}]},
]


@pytest.fixture
def config(recipe) -> RunConfig:
    """A recipe with a teacher, a cache and terms: with every kind of section."""
    teacher, cache = {"model": "cifar_resnet8"}, {"dir": "/cache"}
    return parse(recipe(teacher=teacher, cache=cache, method=METHOD, views__num_views=2))


def logged(config: RunConfig, without: tuple[str, ...] = (), **changes: Any) -> dict[str, str]:
    """What MLflow holds of a recipe, as it was before some fields were invented."""
    fields = {key: str(value) for key, value in flat_fields(config.model_dump(mode="json")).items()} | changes
    return {key: value for key, value in fields.items() if not f"{key}.".startswith(tuple(f"{w}." for w in without))}


def run(recipe: dict[str, str], name: str = "r") -> Run:
    return Run(name, "0", name, "FINISHED", 0.0, recipe, {}, {"val/top1": 0.5})


LATER = {
    "a field": ("train.ema_warmup",),
    "a field that is None by default": ("train.clip_norm",),
    "a list": ("views.ratio",),
    "a field of a term": ("method.1.warmup_epochs",),
    "a section": ("schedule",),
    "several": ("train.ema_warmup", "teacher.source", "cache.trust", "schedule"),
}


@pytest.mark.parametrize("fields", LATER.values(), ids=LATER)
def test_a_field_that_came_later_splits_no_group(config, fields):
    """A run from before it and one that has it at its default are repetitions of one another; one with another value
    is not."""
    older, newer = run(logged(config, without=fields)), run(logged(config, seed="1"), "newer")
    assert older.recipe.keys() < newer.recipe.keys()
    assert [len(group.runs) for group in grouped([older, newer])] == [2]
    assert len(siblings(older, [older, newer]).runs) == 2
    field = next(field for field in newer.recipe if f"{field}.".startswith(f"{fields[0]}."))
    assert [len(group.runs) for group in grouped([older, run(newer.recipe | {field: "77"})])] == [1, 1]


def test_what_was_written_with_defaults_is_the_resolved_recipe(config):
    """The schema's defaults are put in as they are logged, in every kind of section."""
    written = flat_fields(config.model_dump(mode="json", exclude_unset=True))
    assert len(written) < 30
    assert with_defaults({key: str(value) for key, value in written.items()}) == logged(config)


def test_what_is_not_known_here_is_left_as_it_is():
    """A term or a field of another version of the project, or of a plug-in."""
    recipe = {"method.0.term": "of_another_version", "method.0.gamma": "2", "train.epochs": "3", "train.former": "x"}
    found = with_defaults(recipe)
    assert recipe.items() <= found.items()
    assert found["train.precision"] == "auto"
    assert not [name for name in found if name.startswith("method.0.") and name not in recipe]

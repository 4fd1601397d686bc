"""Every recipe is the published one: field by field beside the scripts, and what differs is said in `about.differs`."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.recipe.config import RunConfig
from kdcore.terms import REGISTRY
from ops import catalog
from tests.ops.named import loaded
from tests.ops.published.base import DEFAULTS, TERM_DEFAULTS, Published
from tests.ops.published.cifar import cifar
from tests.ops.published.feature_only import feature_only
from tests.ops.published.imagenet import imagenet

FAMILIES = ("cifar100/", "imagenet/", "feature_only/")
NAMES = [name for name in catalog.names() if name.startswith(FAMILIES)]
OF_DATA = ("crop_pct", "evaluation_size", "evaluation_interpolation", "mean", "std", "held_out")
NOT_OF_TRAINING = {"deterministic", "channels_last", "compile", "select", "evaluate_every_epochs", "max_steps"}
OF_FILES = {"checkpoint", "checkpoint_keys", "pretrained", "source"}


def published(recipe: str) -> Published:
    """What the scripts behind a recipe train with."""
    family, *rest = recipe.split("/")
    if family == "cifar100":
        return cifar(rest[1], rest[0])
    return {"imagenet": imagenet, "feature_only": feature_only}[family](rest[0])


def flat(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return found


def deciding(config: RunConfig) -> dict[str, Any]:
    """{dotted field: value} of all that decides what a run computes and that is not at its default."""
    plain = config.model_dump(mode="json", exclude_defaults=True)
    teacher = {key: value for key, value in (plain.get("teacher") or {}).items() if key not in OF_FILES}
    sections = {
        "views": plain["views"],
        "student": plain["student"],
        "teacher": teacher,
        "optimizer": plain["optimizer"],
        "schedule": plain.get("schedule", {}),
        "train": {key: value for key, value in plain["train"].items() if key not in NOT_OF_TRAINING},
        "data": {key: value for key, value in plain["data"].items() if key in OF_DATA},
    }
    found = {key: value for name, section in sections.items() for key, value in flat(section, name).items()}
    for term, dumped in zip(config.method, plain["method"], strict=True):
        if "pairs" in dumped:
            dumped["pairs"] = [f"{pair['student']} > {pair['teacher']}" for pair in dumped["pairs"]]
        found |= flat(dumped, f"method.{term.term}")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_the_published_one_or_says_where_not(name):
    """Nothing but what the table names differs, and each difference has its sentence; no sentence is without one."""
    config, theirs = loaded(name), published(name)
    assert deciding(config) == theirs.ours, theirs.source
    sentences = config.about.differs
    for words in theirs.words:
        assert sum(words in sentence for sentence in sentences) == 1, f"about.differs does not say: {words}"
    for sentence in sentences:
        assert any(words in sentence for words in theirs.words), f"not in the table of differences: {sentence}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_to_differ_does(name):
    theirs = published(name)
    for field, (ours, words) in theirs.differs.items():
        assert theirs.fields[field] != ours, f"{field} is as published, but said to differ: {words}"


def test_defaults_that_the_published_recipes_rest_on():
    config = catalog.load("kd", ["optimizer.lr=1"])
    for field, value in DEFAULTS.items():
        section, name = field.split(".")
        assert type(getattr(config, section)).model_fields[name].get_default() == value, field
    for term, fields in TERM_DEFAULTS.items():
        for name, value in fields.items():
            assert REGISTRY[term].model_fields[name].get_default() == value, f"{term}.{name}"


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=0.04",
        "train.batch_size=128",
        "method.0.weight=2",
        "views.padding=3",
        "data.evaluation_interpolation=bicubic",
    ],
)
def test_a_recipe_that_changes_is_noticed(override):
    name = "cifar100/resnet56-resnet20/lskd"
    assert deciding(catalog.load(name, [override])) != published(name).ours

"""Recipes as MLflow holds them, flat and as text, completed by fields that did not exist when they were logged.

The default of a new field is off, or keeps the earlier behaviour. A run that was logged without the field is therefore
a run with its default, and is compared as one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from cluster.recipe.config import RunConfig
from cluster.tracking.fields import flat_fields
from kdcore.terms import REGISTRY, Term
from ops.schema import named_models


def with_defaults(recipe: Mapping[str, str]) -> dict[str, str]:
    """Return a logged recipe, {dotted field: text}, with every other field of its sections at its default."""
    sections = {field.rsplit(".", depth)[0] for field in recipe for depth in range(1, field.count(".") + 1)}
    return dict(missing_fields(RunConfig, "", recipe, sections)) | dict(recipe)


def with_micro_batch(recipe: Mapping[str, str]) -> dict[str, str]:
    """Return a logged recipe with the micro-batch that several workers made of the batch, where none was given.

    It decides the result, by batch norm and some losses; the number of workers otherwise does not.
    """
    workers, size = int(recipe.get("scaling.num_workers", "1")), recipe.get("train.batch_size")
    if workers <= 1 or size is None or recipe.get("train.micro_batch") != "None":
        return dict(recipe)
    return {**recipe, "train.micro_batch": str(int(size) // workers)}


def missing_fields(
    model: type[BaseModel], prefix: str, recipe: Mapping[str, str], sections: set[str]
) -> Iterator[tuple[str, str]]:
    """Yield (field, default) for each field missing from a section or one below it. prefix: its name and a dot."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if key in sections:
            for below, start in models_below(field.annotation, f"{key}.", recipe, sections):
                yield from missing_fields(below, start, recipe, sections)
        elif key not in recipe and name in defaults_of(model):
            leaves = flat_fields({name: defaults_of(model)[name]}, prefix)
            yield from ((leaf, str(value)) for leaf, value in leaves.items())


@cache
def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return {field: default} of the fields of a model that have one, as they are logged."""
    return model.model_construct().model_dump(mode="json")


def models_below(
    annotation: Any, prefix: str, recipe: Mapping[str, str], sections: set[str]
) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield (model, prefix) of the section that a field holds, or of each item where it holds several.

    A term's model is found by the term's name; an unknown term yields nothing.
    """
    model = next(named_models(annotation), None)
    items = (f"{prefix}{number}" for number in itertools.count())
    numbered = [f"{item}." for item in itertools.takewhile(sections.__contains__, items)]
    for start in numbered or [prefix]:
        found = REGISTRY.get(recipe.get(f"{start}term", "")) if model is Term else model
        if found is not None:
            yield found, start

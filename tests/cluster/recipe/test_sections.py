"""Every field of a recipe and of a sweep says what it means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.sweep import stoppers
from cluster.sweep.axes import RANGES
from cluster.sweep.config import SweepConfig
from kdcore.errors import Refused
from kdcore.section import meaning
from kdcore.terms import Term


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model that an annotation names, and every one that those name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models_in(field.annotation)
    for part in get_args(annotation):
        yield from models_in(part)


FAMILIES = {*RANGES.values(), *stoppers.REGISTRY.values()}
SECTIONS = sorted({*models_in(RunConfig), *models_in(SweepConfig), *FAMILIES}, key=lambda model: model.__name__)


def test_the_sections_are_found():
    names = {section.__name__ for section in SECTIONS}
    assert {"RunConfig", "DataConfig", "ViewPolicy", "CacheConfig", "ScheduleConfig", "Asha", "LogRange"} <= names
    assert Term in SECTIONS


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_has_a_description(section):
    assert section.__doc__
    for name in section.model_fields:
        description = meaning(section, name)
        assert len(description) > 10, f"{section.__name__}.{name} has no docstring below it"
        assert description.endswith((".", "...")), f"{section.__name__}.{name}: {description!r} is no sentence"


def test_batches_are_prepared_ahead(recipe):
    """As many as every loader takes: one fewer is refused with the field's name, not by the loader."""
    with pytest.raises(Refused, match=r"data\.prefetch: Input should be greater than or equal to 2"):
        parse(recipe(data__prefetch=1))

"""The dotted names of a configuration's fields, and which of them a wrong name may mean."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel


def near_names(model: type[BaseModel], unknown: str, beside: Sequence[str], in_lists: Sequence[str] = ()) -> list[str]:
    """Return the fields that an unknown dotted name may mean, the likeliest first.

    beside: the names in its section; in_lists: the fields of that name in the recipe's lists, such as
    method.1.temperature. A field of the same name in another section or in a list comes before those that only look
    alike.
    """
    last = unknown.rpartition(".")[2]
    elsewhere = [*(name for name in dotted_names(model) if name.rpartition(".")[2] == last), *in_lists]
    near = difflib.get_close_matches(last, beside, n=3, cutoff=0.5)
    return elsewhere[:3] or near or list(beside)


def dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every field of a model and of the sections below it; for lists, only the name."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        section = section_in(field.annotation)
        if section is not None:
            yield from dotted_names(section, f"{prefix}{name}.")


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, optional or not; None for any other field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    members = [part for part in get_args(annotation) if part is not type(None)]
    return section_in(members[0]) if len(members) == 1 and type(None) in get_args(annotation) else None

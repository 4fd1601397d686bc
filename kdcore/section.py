"""The base of everything that a recipe configures: frozen, strict, each field explained by the docstring below it.

pydantic can read these docstrings by itself, when a class is made: that costs every process a quarter of a second,
workers too, for text that two commands show. Here they are read from the source on demand.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from kdcore.errors import Refused


class Section(BaseModel):
    """Base of the sections and of the terms; the JSON schema of one has the meanings of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        properties: dict[str, Any] = handler.resolve_ref_schema(schema).get("properties", {})
        for name, found in properties.items():
            if text := meaning(cls, name):
                found.setdefault("description", text)
        return schema


def refuse_idle(section: BaseModel, fields: Iterable[str], needed: str) -> None:
    """Refuse fields that nothing reads without `needed`, if they are set to a value other than their default.

    For fields that say where something runs, and those of a sweep's space: what they need is written next to them. Not
    for details of what a recipe turns on, such as a warm-up, a moving average or erasing: one override, or an axis of a
    sweep, turns that off. Its details then have no effect, and their docstrings say so.
    """
    for name in fields:
        value = getattr(section, name)
        if value != type(section).model_fields[name].get_default(call_default_factory=True):
            raise Refused(f"{name}={value} has no effect without {needed}; leave it out, or give that")


def meaning(model: type[BaseModel], name: str) -> str:
    """Return a field's meaning, in one line: the docstring below it, in its class or in the base that declares it."""
    for cls in model.__mro__:
        if text := _docstrings(cls).get(name):
            return text
    return ""


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """Return {field: the docstring below it} of the fields that a class declares itself; empty without a source."""
    if cls is BaseModel or not issubclass(cls, BaseModel):
        return {}
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, SyntaxError):  # for example, typed at a prompt
        return {}
    return dict(_documented(tree.body[0]))


def _documented(node: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield the name of every annotated field with a string right below it, and that string in one line."""
    assert isinstance(node, ast.ClassDef)
    for field, below in pairwise(node.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            yield field.target.id, " ".join(below.value.value.split())

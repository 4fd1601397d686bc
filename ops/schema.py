"""What a recipe may contain, read from its models: sections, terms, each field with its type, default and meaning.

`ops.fields` shows it; `ops.reference` makes a page of it, and the file of the comments that `ops.recipe_text` adds.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from cluster.recipe.config import RunConfig
from cluster.sweep import stoppers
from cluster.sweep.axes import Pairings
from cluster.sweep.config import SweepConfig
from kdcore.section import meaning
from kdcore.terms import REGISTRY, Term
from kdcore.terms.base import Pair
from ops.yaml_text import written

RECIPE, METHOD, SWEEP, LAYERS = "recipe", "method", "sweep", "sweep.layers"
Model = type[BaseModel]
PLURALS = {"integer": "integers", "number": "numbers", "term": "terms"}
BASE = {
    "description": "Recipe files that this one starts from; mappings are merged, everything else is replaced.",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}


@dataclass(frozen=True)
class Entry:
    """One field of a section or a term. default: as a recipe would write it; None for a field that must be given."""

    name: str
    type: str
    default: str | None
    meaning: str

    @property
    def default_text(self) -> str:
        return "required" if self.default is None else self.default


def sections() -> dict[str, Model]:
    """Return {dotted name: model} of the sections of a recipe and of a sweep, in the order in which files list them."""
    recipe: dict[str, Model] = {RECIPE: RunConfig, **_sections_below(RunConfig)}
    return recipe | {SWEEP: SweepConfig, **_sections_below(SweepConfig, SWEEP), LAYERS: Pairings}


def terms() -> dict[str, Model]:
    """Return {name: model} of every term, by name."""
    return dict(sorted(REGISTRY.items()))


def _sections_below(model: Model, prefix: str = "") -> dict[str, Model]:
    found: dict[str, Model] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}.{name}" if prefix else name
        if section := section_of(field):
            found |= {path: section, **_sections_below(section, path)}
            if section is stoppers.Stopper:
                found |= {f"{path}.{rule}": model for rule, model in sorted(stoppers.REGISTRY.items())}
        elif Term in named_models(field.annotation):
            found[path] = Term
    return found


def section_of(field: FieldInfo) -> Model | None:
    """Return the model of a field that holds a section, optional or not; None for a field that holds anything else."""
    options = [_undecorated(option) for option in _options(field.annotation) if option is not type(None)]
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    return models[0] if models == options and models[0] is not Pair else None


def summary(model: Model) -> str:
    """Return the first sentence of a model's docstring, in one line."""
    text = " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".") + "."


def explanation(model: Model) -> str:
    """Return a model's docstring, and below it those of the losses that it names.

    A term is explained at its loss: the class's docstring names the function, in backticks, whose own docstring has the
    formula, the unit and the source.
    """
    text = inspect.cleandoc(model.__doc__ or "")
    module = sys.modules[model.__module__]
    named = [getattr(module, name, None) for name in dict.fromkeys(re.findall(r"`(\w+)`", text))]
    losses = [loss for loss in named if inspect.isfunction(loss) and loss.__module__ == module.__name__]
    return "\n\n".join([text, *(f"`{loss.__name__}`: {_value(loss)}" for loss in losses if loss.__doc__)])


def _value(loss: Callable[..., Any]) -> str:
    """Return a loss's docstring without its first word, "Return": it then begins with the formula."""
    return (inspect.getdoc(loss) or "").removeprefix("Return ")


def entries(model: Model) -> list[Entry]:
    """Return the fields of a section or a term, in the order in which it declares them."""
    return [
        Entry(name, type_text(field.annotation, field.metadata), default_text(field), meaning(model, name))
        for name, field in model.model_fields.items()
    ]


def default_text(field: FieldInfo) -> str | None:
    """Return a field's default as a recipe would write it, or in words; None for a field that must be given."""
    if field.is_required():
        return None
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "not given"
    is_section = isinstance(default, BaseModel) and not isinstance(default, Pair)
    return "its defaults" if is_section else written(default)


def type_text(annotation: Any, metadata: list[Any] | None = None) -> str:
    """Return a field's type in words for a recipe's author: choices, bounds, lists."""
    options = [option for option in _options(annotation) if option is not type(None)]
    if len(options) > 1:
        return " or ".join(type_text(option, metadata) for option in options)
    (only,) = options
    if get_origin(only) is Annotated:
        inner, *details = get_args(only)
        return type_text(inner, [part for detail in details for part in getattr(detail, "metadata", [detail])])
    return _one_type(only, metadata or [])


def _one_type(annotation: Any, metadata: list[Any]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, args))
    if origin is tuple:
        parts = [_bare(arg) for arg in args if arg is not Ellipsis]
        return f"list of {PLURALS.get(parts[0], parts[0])}" if Ellipsis in args else f"[{', '.join(parts)}]"
    if origin is dict:
        return f"{{{_bare(args[0])}: {_bare(args[1])}}}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {Term: "term", Pair: "{student, teacher}"}.get(annotation, "section")
    names = {str: "text", bool: "true | false", int: "integer", float: "number", Any: "value"}
    return f"{names[annotation]}{_bounds(metadata)}"


def _bare(annotation: Any) -> str:
    """Return the type of a list's or mapping's item, without its bounds."""
    options = _options(_undecorated(annotation))
    return type_text(options[0] if len(options) == 1 else Any)


def _bounds(metadata: list[Any]) -> str:
    """Return bounds as ' >= 0, < 1'; nothing where there are none."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [f"{sign} {getattr(part, key)}" for key, sign in signs.items() for part in metadata if hasattr(part, key)]
    return f" {', '.join(found)}" if found else ""


def _undecorated(annotation: Any) -> Any:
    """Return a type without the metadata of `Annotated`."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _options(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union; the annotation itself where it is not one."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def named_models(annotation: Any) -> Iterator[Model]:
    """Yield the models that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from named_models(part)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file, for editors.

    A file may leave out what it takes from its `base`, so only terms, which are not merged, have required fields.
    """
    one_of_the_terms: Any = Annotated[Union[tuple(REGISTRY.values())], Field(discriminator="term")]  # noqa: UP007
    description = meaning(RunConfig, METHOD)
    method: Any = (tuple[one_of_the_terms, ...], Field(min_length=1, description=description))
    schema = create_model("Recipe", __base__=RunConfig, method=method).model_json_schema()
    required = [{"required": ["base"]}, {"required": schema.pop("required")}]
    named = {model.__name__ for model in sections().values() if model is not Term}
    for name, definition in schema["$defs"].items():
        if name in named:
            definition.pop("required", None)
    schema["properties"]["base"] = BASE
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "anyOf": required,
    }

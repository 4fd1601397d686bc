"""Recipes: YAML read, merged with its bases, overridden with `dotted.key=value`, checked, and written.

Every mistake in one is refused in a line that names the field and the nearest valid ones.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from cluster.recipe.field_names import near_names
from cluster.recipe.files import read_recipe
from cluster.recipe.plugins import import_plugins
from cluster.recipe.strict_yaml import MAX_DEPTH, MAX_NUMBER, read_yaml, unfit_characters, write_yaml
from kdcore.credentials import public
from kdcore.errors import Refused, shortened
from kdcore.importing import importing
from kdcore.located import local_file

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig

Model = TypeVar("Model", bound=BaseModel)
_MEMBER = re.compile(r"constrained-\w+|\w+\[.*\]|int|float|str|bool|none")
_NAME = re.compile(r"\^\[([^]]*)\]\[([^]]*)\]\*\$")  # the pattern of a name: its first character, and the others
_LIST, _MAPPING = "Input should be a list, such as [A, B]", "Input should be a mapping, such as {KEY: VALUE}"
_WORDS = {"tuple_type": _LIST, "list_type": _LIST, "dict_type": _MAPPING, "model_type": _MAPPING}
MAX_PROBLEMS = 5  # that one refusal names


def load_recipe(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Return the configuration of a YAML recipe with `dotted.key=value` overrides.

    Refused in one line that says what is wrong.

    A recipe may start from another one with `base: other.yaml` (or a list of them, later ones winning); mappings are
    merged, everything else is replaced.
    """
    return configure(read_recipe(local_file(str(path))), overrides, str(path))


def configure(recipe: Mapping[str, Any], overrides: Sequence[str], source: str) -> RunConfig:
    """Return the configuration of a recipe's mapping with overrides; source names the recipe in errors."""
    data = copy.deepcopy(dict(recipe))
    for override in overrides:
        apply_override(data, override)
    return parse(data, source)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `dotted.key=value` in place, or append to a list with `key+=value`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise Refused(f"override {shortened(repr(override))}: write key=value, such as train.epochs=5")
    if unfit_characters(key):
        raise Refused(f"override {shortened(repr(override))}: a key is a name; write key=value")
    value = read_yaml(text, f"override {shortened(repr(override))}")
    if key.endswith("+"):
        key = key.removesuffix("+")
        value = [*_list_at(data, key, override), value]
    assign(data, key, value)


def _list_at(data: Any, key: str, override: str) -> list[Any]:
    """Return the list at a dotted key, an empty one where there is nothing. Refused for anything else."""
    node = data
    for part in key.split("."):
        if isinstance(node, list):
            node = item(node, part, key)
        else:
            node = node.get(part) if isinstance(node, Mapping) else None
    if node is not None and not isinstance(node, list):
        raise Refused(
            f"override {shortened(repr(override))}: += appends to a list, and {key} is not one; write = instead"
        )
    return node or []


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set one field of nested values by its dotted key, in place; list items are numbered from 0."""
    *parents, last = key.split(".", MAX_DEPTH)
    node: Any = data
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}  # also in place of a section that is written as null
        node = item(node, part, key) if isinstance(node, list) else node[part]
        if not isinstance(node, dict | list):
            raise Refused(f"{shortened(key)}: {shortened(repr(part))} is a value, it has no keys below it")
    if isinstance(node, list):
        item(node, last, key)
        node[int(last)] = value
    else:
        node[last] = value


def item(items: list[Any], number: str, key: str) -> Any:
    """Return an item of a list by its number in a dotted key. Refused where there is none."""
    if not number.isdecimal() or len(number) > 9 or int(number) >= len(items):
        raise Refused(
            f"{shortened(key)}: {shortened(repr(number))} is not an item of a list of {len(items)}, numbered from 0"
        )
    return items[int(number)]


def parse(data: Mapping[str, Any], source: str = "recipe") -> RunConfig:
    """Return a RunConfig from a mapping; Refused in one line, naming the field and the nearest valid ones.

    Its plug-ins are imported first: they may define what else it names.
    """
    with importing("cluster.recipe.config"):  # only here: it imports torch, which reading a recipe's text does not need
        from cluster.recipe.config import RunConfig

    plugins = data.get("plugins")
    if isinstance(plugins, list | tuple):
        import_plugins(plugin for plugin in plugins if isinstance(plugin, str))
    return validated(RunConfig, data, source)


def validated(model: type[Model], data: Mapping[str, Any], source: str) -> Model:
    """Return a model from a mapping, with errors as for `parse`."""
    try:
        made = model.model_validate(data)
    except ValidationError as error:
        problems = list(_sentences(error, model, data))
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise Refused(f"{source}: {'; '.join([*problems[:MAX_PROBLEMS], *more])}") from None
    for place, given, number in _numbers_from_truth(data, made):
        raise Refused(f"{source}: {place}: {str(given).lower()} is not a number (it would be read as {number})")
    for place, problem in _unfit_values(made):
        raise Refused(f"{source}: {shortened(place)}: {problem}")
    return made


def _unfit_values(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (place, what is wrong) of the values in a model that its fields allow but later code cannot handle."""
    if isinstance(value, float) and not math.isfinite(value):
        yield place, f"{value} is not a finite number"
    elif isinstance(value, int) and abs(value) >= MAX_NUMBER:
        yield place, "the number is too large; its size stays below 2**63"
    elif isinstance(value, str) and (unfit := unfit_characters(value)):
        yield place, f"the text holds the character {unfit[0]!r}; leave it out"
    elif isinstance(value, BaseModel | Mapping):
        for key, inner in value.items() if isinstance(value, Mapping) else value:
            yield from _unfit_values(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _unfit_values(inner, f"{place}.{number}")


def _numbers_from_truth(given: Any, made: Any, place: str = "") -> Iterator[tuple[str, bool, float]]:
    """Yield (place, given, number) of every true or false that pydantic has turned into a number."""
    if isinstance(given, bool) and isinstance(made, int | float) and not isinstance(made, bool):
        yield place, given, made
    elif isinstance(given, Mapping):
        for key, value in given.items():
            inner = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _numbers_from_truth(value, inner, f"{place}.{key}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for number, (one, other) in enumerate(zip(given, made, strict=False)):
            yield from _numbers_from_truth(one, other, f"{place}.{number}")


def _sentences(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> Iterator[str]:
    for problem in error.errors():
        if problem["type"] == "too_short" and problem["ctx"]["actual_length"] < len(problem["input"]):
            continue  # its items are wrong, which the other sentences say
        place = shortened(".".join(str(part) for part in problem["loc"] if not _is_member(part)))
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, data, problem["loc"][:-1])
            name = str(problem["loc"][-1])
            near = near_names(model, name, known, list(_places_in_lists(model, data, name)))
            yield f"unknown key {place!r}" + (f"; did you mean {', '.join(near)}?" if near else "")
        elif problem["type"] == "missing":
            yield f"{place} is missing"
        elif problem["type"] == "value_error":
            message = shortened(problem["msg"].removeprefix("Value error, "), 600)
            yield f"{place}: {message}" if place else message
        else:
            yield f"{place}: {_in_words(problem)} (got {shortened(repr(problem['input']))})"


def _is_member(part: int | str) -> bool:
    """Return whether a part of an error's location is no place in a recipe, but a kind of value that a field allows."""
    return isinstance(part, str) and _MEMBER.fullmatch(part) is not None


def _in_words(problem: Mapping[str, Any]) -> str:
    """Return what pydantic says of a value, in the words of YAML in place of Python's."""
    if problem["type"] == "string_pattern_mismatch" and (sets := _NAME.fullmatch(problem["ctx"]["pattern"])):
        first, signs = sets.groups()
        signs = " ".join(signs.removeprefix("A-Za-z0-9"))
        return f"use letters, digits and {signs} only, and begin with a letter{' or digit' if '0-9' in first else ''}"
    return _WORDS.get(problem["type"], problem["msg"])


def _fields_at(model: type[BaseModel], data: Any, location: tuple[int | str, ...]) -> list[str]:
    """Return the fields that a mapping within a recipe may have; none where that is not known."""
    annotation: Any = model
    for part in location:
        if isinstance(part, str):
            found = _model_in(annotation, data)
            if found is None or part not in found.model_fields or not isinstance(data, Mapping):
                return []
            annotation = found.model_fields[part].annotation
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):  # a part that names a member of a union, not a place in the data
            return []
    found = _model_in(annotation, data)
    return sorted(found.model_fields) if found else []


def _places_in_lists(model: type[BaseModel], data: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield the places of a field in the items of a recipe's lists that may have it, such as method.1.temperature."""
    for key, items in data.items():
        for number in range(len(items) if isinstance(items, list | tuple) else 0):
            if name in _fields_at(model, data, (key, number)):
                yield f"{key}.{number}.{name}"


def _model_in(annotation: Any, data: Any) -> type[BaseModel] | None:
    """Return the model that a field or the items of its list are read as; of a family, the one that data names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        members = [member for member in _subclasses(annotation) if _is_named(annotation, member, data)]
        return members[0] if members else annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part, data))), None)


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for subclass in model.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _is_named(family: type[BaseModel], member: type[BaseModel], data: Any) -> bool:
    """Return whether data names a member of a family, such as {term: kd}, by a field that each member fixes."""
    names = [name for name, field in family.model_fields.items() if field.is_required() and field.annotation is str]
    return isinstance(data, Mapping) and any(member.model_fields[n].default == data.get(n, ()) for n in names)


def to_yaml(config: RunConfig, with_store: bool = False) -> str:
    """Return the resolved recipe, every field with its value, and no credentials.

    `load_recipe` reads it back to an equal RunConfig, except for those and the MLflow store. with_store: its address
    too, to show what would be used; a recipe that is kept or given away is for other machines, with another store.
    """
    data = config.model_dump(mode="json")
    if not with_store:
        data["tracking"]["uri"] = None
    return write_yaml(public(data))

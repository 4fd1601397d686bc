"""The paths in a configuration: listed by their fields, and made absolute for workers elsewhere on the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cluster.recipe.field_names import section_in
from cluster.recipe.strict_yaml import read_yaml
from kdcore.configs import PathField
from kdcore.errors import Refused, shortened
from kdcore.located import absolute_location

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig

_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")


def absolute(config: RunConfig, base: Path) -> RunConfig:
    """Return the configuration for its workers, whose working directory and home differ.

    Every local path is absolute, `~` expanded, and the MLflow store is the one that MLFLOW_TRACKING_URI names where the
    recipe names none.
    """
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    tracking = config.tracking.model_copy(update={"uri": None if uri is None else absolute_store(uri, base)})
    resolved: RunConfig = _with_absolute_paths(config, base)
    return resolved.model_copy(update={"tracking": tracking})


def paths_of(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, path) of every path that a configuration gives, remote ones too."""
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            key, inner = f"{place}.{name}".lstrip("."), getattr(value, name)
            marker = _path_field(field.metadata)
            if marker is None:
                yield from paths_of(inner, key)
                continue
            for one in inner if isinstance(inner, tuple) else (inner,):
                if one is not None and (path := marker.path_in(one)) is not None:
                    yield key, path
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from paths_of(item, f"{place}.{number}")


def paths_given(model: type[BaseModel], overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, path) of the overrides that set a path, for a recipe of this model that cannot be read yet."""
    fields = dict(_path_fields(model))
    for override in overrides:
        key, _, text = override.partition("=")
        value = read_yaml(text, f"override {shortened(repr(override))}") if key in fields else None
        if isinstance(value, str) and (path := fields[key].path_in(value)) is not None:
            yield key, path


def _path_fields(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, PathField]]:
    """Yield (dotted key, marker) of the fields that name one path, in a model and in the sections below it."""
    for name, field in model.model_fields.items():
        if (marker := _path_field(field.metadata)) is not None:
            yield f"{above}{name}", marker
        elif (section := section_in(field.annotation)) is not None:
            yield from _path_fields(section, f"{above}{name}.")


def _path_field(metadata: Sequence[Any]) -> PathField | None:
    return next((one for one in metadata if isinstance(one, PathField)), None)


def _with_absolute_paths(value: Any, base: Path) -> Any:
    """Return a configuration, or a value in one, with its local paths made absolute from `base`."""
    if isinstance(value, tuple):
        return tuple(_with_absolute_paths(item, base) for item in value)
    if not isinstance(value, BaseModel):
        return value
    changed = {}
    for name, field in type(value).model_fields.items():
        inner, marker = getattr(value, name), _path_field(field.metadata)
        if marker is not None and inner is not None:
            changed[name] = _absolute(inner, marker, base)
        elif isinstance(inner, BaseModel | tuple):
            changed[name] = _with_absolute_paths(inner, base)
    return value.model_copy(update=changed)


def _absolute(value: Any, marker: PathField, base: Path) -> Any:
    """Return the value of a field that names paths, one or several, with the local ones absolute."""
    if isinstance(value, tuple):
        return tuple(_absolute(one, marker, base) for one in value)
    path = marker.path_in(value)
    return value if path is None else marker.prefix + absolute_location(path, base)


def absolute_store(uri: str, base: Path) -> str:
    """Return the address of an MLflow store whose local path, if it has one, is absolute from `base`.

    MLflow takes sqlite:///FILE (absolute with a fourth slash), file:FOLDER and FOLDER for paths on this machine, and
    resolves them again in every process (mlflow#7206).
    """
    if _HOST_AND_PORT.fullmatch(uri):
        raise Refused(f"the address of the MLflow store, {uri!r}, does not say how it is reached; write http://{uri}")
    scheme, colon, rest = uri.partition(":")
    if scheme.partition("+")[0] == "sqlite" and rest.startswith("///"):
        path, question, options = rest[3:].partition("?")
        if not path or path == ":memory:":
            raise Refused(f"tracking.uri {uri!r} is in the memory of one process; give a file: sqlite:///FILE.db")
        return f"{scheme}:///{absolute_location(path, base)}{question}{options}"
    if scheme == "file" and not rest.startswith("//"):
        return f"file://{absolute_location(rest, base)}"
    is_name = uri in ("databricks", "databricks-uc", "uc") or bool(colon)
    return uri if is_name else absolute_location(uri, base)

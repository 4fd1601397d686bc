"""A recipe as flat fields, as MLflow keeps parameters: {"method.1.temperature": 4.0}."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdcore.credentials import public
from kdcore.named_models import LOCAL_DIR

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig  # it imports torch, which reading a run's journal does not need

NAME_IN_MLFLOW = re.compile(r"[\w.\-/ :]+")
PARAM_LENGTH = 500  # what MLflow takes
DIGEST_OF_PARAM = 12  # characters


def flat_fields(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of nested mappings; those in a list are numbered, as in `method.1.temperature`.

    A mapping whose keys MLflow would not take in a parameter's name, such as weights of a class `b's`, is one value.
    """
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        is_nested = isinstance(value, dict) and all(NAME_IN_MLFLOW.fullmatch(name) for name in value)
        leaves |= flat_fields(value, f"{prefix}{key}.") if is_nested else {f"{prefix}{key}": value}
    return leaves


def fields_of(config: RunConfig) -> dict[str, Any]:
    """Return {dotted key: value} of a recipe; a term's seed that is not given is the run's."""
    fields = flat_fields(public(config.model_dump(mode="json")))
    open_seeds = (key for key in fields if re.fullmatch(r"method\.\d+\.seed", key) and fields[key] is None)
    return fields | dict.fromkeys(open_seeds, config.seed)


def places_of_weights(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> set[str]:
    """Return the fields that say where a network's weights lie: the weights themselves are compared instead."""
    networks = {
        key.removesuffix(".model") for key in ours if re.fullmatch(r"(student|teacher|teachers\.\d+)\.model", key)
    }
    paths = {f"{network}.{field}" for network in networks for field in ("checkpoint", "class_indices", "cache_dir")}
    folders = {f"{network}.model" for network in networks}
    return paths | {key for key in folders if all(str(one.get(key)).startswith(LOCAL_DIR) for one in (ours, theirs))}


def param_text(value: Any) -> str:
    """Return a value as MLflow takes it: a longer one cut, with a digest of the whole at its end.

    Runs of one recipe are found by their parameters, so what differs behind the cut has to be seen.
    """
    text = str(value)
    if len(text) <= PARAM_LENGTH:
        return text
    end = f"... {hashlib.sha256(text.encode()).hexdigest()[:DIGEST_OF_PARAM]}"
    return text[: PARAM_LENGTH - len(end)] + end

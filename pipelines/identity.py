"""The identity of a configuration: its values, less the fields that came later and are not used.

Fingerprints are taken of these values, not of a schema: a new field that is off must leave every cache and every
unfinished run as it is. A change to an old field's meaning changes the VERSION next to the values instead.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel


@runtime_checkable
class HasFirstFields(Protocol):
    """A model that names the fields with a default that it had when its fingerprints were first taken."""

    FIRST_FIELDS: ClassVar[frozenset[str]]


def identity_of(value: Any) -> Any:
    """Return a pydantic model, or a container of them, as plain values for JSON.

    A field is left out where it equals its default and is not among the model's FIRST_FIELDS. A model without that list
    keeps all of its fields.
    """
    if isinstance(value, BaseModel):
        return {
            name: identity_of(getattr(value, name)) for name in type(value).model_fields if not _is_idle(value, name)
        }
    if isinstance(value, dict):
        return {key: identity_of(one) for key, one in value.items()}
    return [identity_of(one) for one in value] if isinstance(value, tuple | list) else value


def _is_idle(model: BaseModel, name: str) -> bool:
    field = type(model).model_fields[name]
    if field.is_required() or not isinstance(model, HasFirstFields) or name in model.FIRST_FIELDS:
        return False
    return bool(getattr(model, name) == field.get_default(call_default_factory=True, validated_data={}))

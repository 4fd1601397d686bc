"""Nested plain values: as dotted keys, their differences, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: value} of nested mappings, sequences as lists."""
    # A list is one value, so that two of different lengths differ as a whole; `cluster.tracking.fields.flat_fields`
    # numbers the mappings in a list, because MLflow keeps each of their values as a parameter.
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return leaves


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, theirs, ours) of nested values that differ.

    Library versions come late, and fingerprints, which say least, last.
    """
    there, here = flat(theirs), flat(ours)
    keys = [key for key in there | here if there.get(key) != here.get(key)]
    keys.sort(key=lambda key: (key.endswith("fingerprint"), ".versions." in f".{key}"))
    return [(key, there.get(key), here.get(key)) for key in keys]


def in_short(value: Any) -> str:
    """Return a value as shown in an error; of a fingerprint, the beginning."""
    return f"{value[:16]}..." if isinstance(value, str) and len(value) == 64 else repr(value)


def digest_of(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

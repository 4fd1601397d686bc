"""Classes by name: a second one is refused, wherever it is defined, and the same one may come again."""

from __future__ import annotations

import pytest

from kdcore.errors import Refused
from kdcore.registry import Registry


def made(name: str) -> type:
    return type(name, (), {"__module__": "somewhere"})


def test_a_second_class_of_a_name_is_refused():
    """Also where both are of one module."""
    registry: Registry[object] = Registry("rules")
    registry.add("first", made("One"))
    again = made("One")
    registry.add("first", again)
    assert registry["first"] is again, "as when its module is imported again"
    with pytest.raises(Refused, match=r"^two rules are called 'first': somewhere\.One and somewhere\.Two; rename one$"):
        registry.add("first", made("Two"))


def test_the_nearest_names():
    registry: Registry[object] = Registry("rules")
    for name in ("median", "asha", "medium"):
        registry.add(name, made(name))
    assert registry.nearest("medain") == ["median", "medium"]
    assert registry.nearest("xyz") == ["asha", "median", "medium"]

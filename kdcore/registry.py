"""Classes that register themselves by name: terms, stopping rules, trackers."""

from __future__ import annotations

import difflib
from typing import TypeVar

from kdcore.errors import Refused

T = TypeVar("T")


class Registry(dict[str, type[T]]):
    """{name: class}. kind: the plural of what is registered, for messages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def add(self, name: str, added: type[T]) -> None:
        """Register a class, or the same one as its module defines it again. Refuse a name that another class has."""
        known = self.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (added.__module__, added.__qualname__):
            places = (f"{one.__module__}.{one.__qualname__}" for one in (known, added))
            raise Refused(f"two {self.kind} are called {name!r}: {' and '.join(places)}; rename one")
        self[name] = added

    def nearest(self, name: str) -> list[str]:
        """Return up to three names that are most like this one, or all names where none is."""
        return difflib.get_close_matches(name, self, n=3) or sorted(self)

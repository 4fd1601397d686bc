"""Files of recipes: YAML merged with the files, or the named recipes, that it starts from.

Not here: how a mapping becomes a configuration (`cluster.recipe.reading`), and which YAML is refused
(`cluster.recipe.strict_yaml`).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cluster.recipe.strict_yaml import read_yaml_file
from kdcore.errors import Refused, shortened
from kdcore.located import absolute_location

Named = Callable[[str], dict[str, Any]]
MAX_FILES = 64  # that one recipe is put together from


def read_recipe(path: Path, named: Named | None = None) -> dict[str, Any]:
    """Return the mapping of a recipe file with its bases merged in.

    named: gives the mapping of a recipe by its name, for a base that is a name.
    """
    return _Files(named).read(path)


def files_read(path: Path, named: Named | None = None) -> list[Path]:
    """Return the files that a recipe's file is put together from, itself included; not those of named recipes."""
    files = _Files(named)
    files.read(path)
    return sorted(files.known)


class _Files:
    """Reads recipe files with their bases, each file once: files that start from two each would take 2^n reads.

    named: as in `read_recipe`. known: the mapping of each file, bases merged in; None while these are being read.
    """

    def __init__(self, named: Named | None) -> None:
        self.named = named
        self.known: dict[Path, dict[str, Any] | None] = {}

    def read(self, path: Path) -> dict[str, Any]:
        """Return the mapping of a file with its bases merged in."""
        if not is_file(path):
            near = f"; did you mean {', '.join(_similar(path))}?" if _similar(path) else ""
            raise Refused(f"{shortened(str(path), 300)}: no such recipe{near}")
        if (known := self.known.get(path.resolve())) is not None:
            return copy.deepcopy(known)
        self.known[path.resolve()] = None
        data = read_yaml_file(path)
        if not isinstance(data, dict):
            raise Refused(f"{path}: a recipe is a mapping of keys to values")
        bases = data.pop("base", [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            merge(merged, self.read_base(base, path))
        self.known[path.resolve()] = merge(merged, data)
        return copy.deepcopy(merged)

    def read_base(self, base: Any, path: Path) -> dict[str, Any]:
        """Return the mapping of a recipe that the one at `path` starts from: a file, or the name of a recipe."""
        if not isinstance(base, str) or not base:
            raise Refused(
                f"{path}: base is {shortened(repr(base))}; give a recipe's file or name, or a list of them, or leave "
                "it out"
            )
        file = Path(absolute_location(base, path.parent))
        if not is_file(file):
            return self.named(base) if self.named and file.suffix not in (".yaml", ".yml") else self.read(file)
        if file.resolve() in self.known and self.known[file.resolve()] is None:
            raise Refused(f"{path}: base {base} starts from {path} itself; recipes cannot start from one another")
        if len(self.known) > MAX_FILES:
            raise Refused(f"{path}: base {base} is the {MAX_FILES + 1}th file of one recipe; merge some of them")
        return self.read(file)


def is_file(path: Path) -> bool:
    """Return whether there is a regular file; False where there cannot be one: the path is too long, or a link loop."""
    try:
        return path.is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _similar(path: Path) -> list[str]:
    """Return the names of recipes next to a path that resemble its own."""
    try:
        return difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.yaml")], n=3)
    except (OSError, RuntimeError, ValueError):  # as in `is_file`
        return []


def merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `above` into `below` in place, and return it: mappings key by key, other values replaced."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            merge(below[key], value)
        else:
            below[key] = value
    return below

"""Recipes by name: the files in recipes/ without their suffix, and the rows of `ops.cifar_rows`.

A recipe starts with its manual, a comment that says the paper, the command, the hardware it is meant for, what to
expect, and where that number is from.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config import RunConfig
from cluster.recipe import configure, read_recipe
from kdcore.errors import Refused
from ops import cifar_rows as rows
from ops.console import say

RECIPES = Path(__file__).parent / "recipes"
SHARED = "common"  # the name of files that recipes start from and that are none by themselves


def names() -> list[str]:
    """Every named recipe: files by name, then the rows."""
    files = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml") if path.stem != SHARED)
    return sorted(path.as_posix() for path in files) + rows.names()


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a YAML file or of a named recipe, with overrides; Refused in one line."""
    return configure(read(str(recipe)), overrides, str(recipe))


def read(recipe: str) -> dict[str, Any]:
    """The complete mapping of a YAML file or of a named recipe."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        return read_recipe(Path(recipe))
    known = names()
    if recipe not in known:
        near = difflib.get_close_matches(recipe, known, n=3) or ["a .yaml file"]
        raise Refused(f"{recipe}: no such recipe; did you mean {', '.join(near)}? `python -m ops recipes` lists them")
    return rows.recipe(recipe) if recipe in rows.names() else read_recipe(RECIPES / f"{recipe}.yaml")


def header(name: str) -> str:
    """The manual of a named recipe, as comment lines."""
    if name not in rows.names():
        lines = (RECIPES / f"{name}.yaml").read_text().splitlines(keepends=True)
        ends = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return "".join(lines[:ends])
    title, *parts = rows.manual(name).items()
    lines = [f"# {title[1]}", "#"]
    for heading, text in parts:
        lines += textwrap.wrap(text, 118, initial_indent=f"# {heading + ':':<10}", subsequent_indent="#" + " " * 11)
    return "\n".join(lines) + "\n"


def text(name: str) -> str:
    """A named recipe as one complete YAML file, to copy and edit."""
    body = yaml.safe_dump(read(name), sort_keys=False, default_flow_style=None, width=100)
    return header(name) + body


def expected(name: str) -> str:
    """What a named recipe is expected to reach, from its manual."""
    found = re.search(r"^# expected: +(.*)$", header(name), re.MULTILINE)
    return found[1] if found else ""


def recipes(wanted: str | None) -> int:
    """Prints the recipe of that name; else the names that contain it (all, without one), with what to expect."""
    known = names()
    if wanted in known:
        say(text(wanted))
        return 0
    shown = [name for name in known if wanted is None or wanted in name]
    if not shown:
        read(str(wanted))  # raises, and names the nearest
    for name in shown:
        say(f"{name:<48} {expected(name)}".rstrip())
    return 0

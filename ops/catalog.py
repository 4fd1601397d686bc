"""Recipes by name: the files in recipes/ without their suffix, and the rows of `ops.cifar_rows`.

Its `about` section is a recipe's manual: the paper, the data and hardware it is meant for, what to expect, where that
number is from, and what differs from the published script.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.about import AboutConfig
from cluster.recipe import configure, validated
from cluster.recipe_files import read_recipe
from cluster.recipe_paths import absolute
from kdcore.errors import Refused
from kdcore.located import is_uri, local_file
from ops import cifar_rows as rows
from ops.console import say

if TYPE_CHECKING:
    from cluster.config import RunConfig

RECIPES = Path(__file__).parent / "recipes"
SHARED = "common"  # the name of files that recipes start from and that are none by themselves


def names() -> list[str]:
    """Return every named recipe: files by name, then the rows."""
    return [*_names_of_files(), *rows.names()]


@cache
def _names_of_files() -> Sequence[str]:
    """Return the names of the files, which are looked for once."""
    files = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml") if path.stem != SHARED)
    return sorted(path.as_posix() for path in files)


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a YAML file or of a named recipe, with overrides.

    Refused in one line, as `cluster.recipe.load_recipe`.
    """
    return configure(read(str(recipe)), overrides, str(recipe))


def load_here(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration as its workers need it: with the paths of this working directory absolute."""
    return absolute(load(recipe, overrides), Path.cwd())


def read(recipe: str) -> dict[str, Any]:
    """Return the complete mapping of a YAML file or of a named recipe."""
    if Path(recipe).suffix in (".yaml", ".yml"):
        return read_recipe(local_file(recipe), read)
    known = names()
    if recipe not in known:
        near = difflib.get_close_matches(recipe, known, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "give the name of one, or a file that ends in .yaml;"
        raise Refused(f"{recipe}: no such recipe; {hint} `python -m ops recipes` lists them")
    return rows.recipe(recipe) if recipe in rows.names() else read_recipe(RECIPES / f"{recipe}.yaml", read)


def require_recipe(recipe: str) -> None:
    """Refuse a recipe that is not there or cannot be read; one at a URI is left to who fetches it."""
    if not is_uri(recipe):
        read(recipe)


def about(name: str) -> AboutConfig:
    """Return what a named recipe follows, is expected to reach, and where it differs."""
    section = rows.about(name) if name in rows.names() else read(name).get("about", {})
    return validated(AboutConfig, section, name)


def text(name: str) -> str:
    """Return a named recipe as one complete YAML file, each field with its meaning, to copy and edit."""
    from ops.recipe_text import recipe_text

    return f"# python -m ops train {name}\n# Every other field: python -m ops fields\n\n{recipe_text(read(name))}"


def recipes(wanted: str | None) -> int:
    """Print the recipe of that name; else the names that contain it (all, without one), with what to expect."""
    known = names()
    if wanted in known:
        say(text(wanted).rstrip())
        return 0
    shown = [name for name in known if wanted is None or wanted in name]
    if not shown:
        read(str(wanted))  # raises, and names the nearest
    for name in shown:
        say(f"{name:<48} {about(name).expected}")
    return 0

"""Recipes by name: the files in recipes/ without their suffix, and the rows of `ops.cifar100.rows`.

A recipe's `about` section is its manual: the paper, the data and hardware it is meant for, what to expect, where that
number is from, and what differs from the published script.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.recipe.about import AboutConfig
from cluster.recipe.files import read_recipe
from cluster.recipe.paths import absolute
from cluster.recipe.reading import configure, validated
from kdcore.errors import Refused, did_you_mean
from kdcore.located import is_uri, local_file
from ops.cifar100 import rows
from ops.console import say

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig

RECIPES = Path(__file__).parent / "recipes"
SHARED = "common"  # the name of files that recipes start from, and that are not recipes themselves


def names() -> list[str]:
    """Return the names of all recipes: files by name, then the rows."""
    return [*_names_of_files(), *rows.names()]


@cache
def _names_of_files() -> Sequence[str]:
    """Return the names of the files, which are listed once."""
    files = (path.relative_to(RECIPES).with_suffix("") for path in RECIPES.rglob("*.yaml") if path.stem != SHARED)
    return sorted(path.as_posix() for path in files)


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of a YAML file or of a named recipe, with overrides.

    Refused in one line, as in `cluster.recipe.reading.load_recipe`.
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
        hint = did_you_mean(recipe, known, "give the name of one, or a file that ends in .yaml;")
        raise Refused(f"{recipe}: no such recipe; {hint} `python -m ops recipes` lists them")
    return rows.recipe(recipe) if recipe in rows.names() else read_recipe(RECIPES / f"{recipe}.yaml", read)


def require_recipe(recipe: str) -> None:
    """Refuse a recipe that is missing or unreadable; one at a URI is checked when it is fetched."""
    if not is_uri(recipe):
        read(recipe)


def about(name: str) -> AboutConfig:
    """Return what a named recipe follows, what it is expected to reach, and where it differs."""
    section = rows.about(name) if name in rows.names() else read(name).get("about", {})
    return validated(AboutConfig, section, name)


def text(name: str) -> str:
    """Return a named recipe as one complete YAML file, each field with its meaning, to copy and edit."""
    from ops.recipe_text import recipe_text

    return f"# python -m ops train {name}\n# Every other field: python -m ops fields\n\n{recipe_text(read(name))}"


def recipes(name: str | None) -> int:
    """Print the recipe of a name; else the names that contain it (all, for None), with what to expect."""
    known = names()
    if name in known:
        say(text(name).rstrip())
        return 0
    shown = [one for one in known if name is None or name in one]
    if not shown:
        read(str(name))  # raises, and names the nearest
    for one in shown:
        say(f"{one:<48} {about(one).expected}")
    return 0

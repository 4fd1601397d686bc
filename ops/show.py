"""`show`: a recipe as it will run, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdcore.importing import importing
from ops import catalog


def show(recipe: str, overrides: Sequence[str], picture: str | None, seconds: float) -> int:
    """Print what a recipe takes, its networks, and the recipe with every field; or save sample views as a picture.

    seconds: how long to time its steps; 0: not at all. Wrong names are refused before the networks' libraries are
    imported.
    """
    config = catalog.load_here(recipe, overrides)
    from cluster.recipe.plugins import describe_code
    from cluster.recipe.reading import to_yaml
    from cluster.recipe.rules import check_may_be_trained
    from cluster.tracking.folder import RunFolder
    from cluster.training.check import check_names
    from ops.console import say

    if RunFolder.of(config).state() != "finished":  # which may be older than a rule
        check_may_be_trained(config)
    check_names(config if picture is None else config.model_copy(update={"teacher": None, "teachers": ()}))
    with importing("ops.inspection"):
        from ops.inspection import print_run, save_views

    if picture is not None:
        save_views(config, Path(picture))
        return 0
    print_run(config, seconds)
    say(to_yaml(config, with_store=True))
    for line in describe_code(config):
        say(line)
    return 0

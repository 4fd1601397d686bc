"""Whether a recipe is that of the run in a folder, which it would otherwise continue as something that it is not.

Not here: the images, weights and code that belong to a run (`cluster.tracking.folder`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.tracking.fields import fields_of, places_of_weights
from kdcore.errors import Refused

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig  # it imports torch


def refuse_other_recipe(path: Path, known: RunConfig, config: RunConfig, remedy: str, *, goes_on: bool) -> None:
    """Refuse a recipe that computes something else than the run in a folder.

    known: the run's; goes_on: whether it is to be continued, and not finished, so that the number of workers matters.
    """
    ours, theirs = fields_of(config), fields_of(known)
    changed = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    free = config.INCIDENTAL_FIELDS.union(places_of_weights(ours, theirs))
    changed = [key for key in changed if key.split(".")[0] not in config.INCIDENTAL and key not in free]
    if changed:
        key = changed[0]
        raise Refused(
            f"{path} holds a run of another recipe ({key}: {theirs.get(key)!r} there, {ours.get(key)!r} now); {remedy}"
        )
    if goes_on:
        refuse_other_micro_batch(path, known, config, remedy)


def refuse_other_micro_batch(path: Path, known: RunConfig, config: RunConfig, remedy: str) -> None:
    """Refuse a number of workers that changes what one forward pass holds, and with it batch norm and some losses."""
    if known.micro_batch != config.micro_batch:
        given = known.train.micro_batch
        field = f"scaling.num_workers={known.scaling.num_workers}" if given is None else f"train.micro_batch={given}"
        raise Refused(
            f"{path} holds a run of which one forward pass takes {known.micro_batch} images, and now it would take "
            f"{config.micro_batch}; give {field}, as it was, {remedy}"
        )

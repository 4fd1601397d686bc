"""What the images of an evaluation are called: two sets, or two ways of showing one, never have one name.

A run's own validation split has its name in the recipe, such as `val`. Other images have the name of their folder, or
of their variant, with the first digits of their fingerprint: many a folder is called `val`. Where overrides show them
otherwise than the run's own validation does, digits of how they are shown are in the name, too.
"""

from __future__ import annotations

import re
from pathlib import Path

from cluster.config import RunConfig
from cluster.images import evaluation_policy, open_data
from cluster.tracking.folder import RunFolder
from pipelines.data.variants import Target
from pipelines.views.plan import ViewPlan

DIGITS = 8  # of a fingerprint


def name_images(config: RunConfig, run: RunFolder, target: Target, data: str | None, variant: str | None) -> str:
    """Return the name of the images that a run, or whatever the recipe tells of, is evaluated on.

    data, variant: as `evaluate` is given them. A recipe whose training images are not the run's has not its split.
    """
    indexes, fingerprint = open_data(config, reuse_index=True), target.index.fingerprint
    is_runs = run.data_fingerprint() in (None, indexes["train"].fingerprint)
    own = indexes["val"].fingerprint if is_runs else None
    is_own = variant is None and (data is None or fingerprint == own)
    name = split_name(config.data.val_split) if is_own else variant or folder_name(str(data))
    if (views := changed_views(config, run)) is not None:
        name = f"{name}-views-{views[:DIGITS]}"
    return distinct_name(name, fingerprint, own)


def views_of(config: RunConfig) -> str:
    """Return the fingerprint of how a recipe's validation shows images, whichever they are."""
    return ViewPlan(evaluation_policy(config), seed=0, num_samples=1).appearance


def changed_views(config: RunConfig, run: RunFolder) -> str | None:
    """Return the fingerprint of how images are shown where overrides have changed that; None for the run's own way."""
    if not run.recipe.is_file() or (views := views_of(config)) == views_of(run.read_recipe(config)):
        return None
    return views


def split_name(split: str) -> str:
    """Return what the images of a run's own split are called: its name, in one part, as MLflow takes it in a metric."""
    return re.sub(r"[^\w.\- ]", "-", split) or "images"


def folder_name(place: str) -> str:
    """Return the last part of a folder or URI, with the characters that MLflow takes in a metric's name."""
    return split_name(Path(place).resolve().name)


def distinct_name(name: str, fingerprint: str, own: str | None) -> str:
    """Return a name as it is for the images with the fingerprint `own`, for others with digits of theirs.

    Results of earlier versions may have a bare name for any images.
    """
    digits = f"-{fingerprint[:DIGITS]}"
    return name if fingerprint == own or name.endswith(digits) else f"{name}{digits}"

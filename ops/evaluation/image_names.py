"""Names for the images of an evaluation: two sets, or two ways of showing one set, never share a name.

A run's own validation split has its name in the recipe, such as `val`. Other images have the name of their folder or of
their variant, with the first digits of their fingerprint, since many folders are called `val`. Where overrides show
images differently from the run's own validation, the name also has the first digits of the views' fingerprint.
"""

from __future__ import annotations

import re
from pathlib import Path

from cluster.images import evaluation_policy, open_data
from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from kdcore.located import is_uri
from pipelines.data.variants import Target
from pipelines.places import shown_location
from pipelines.views.plan import ViewPlan

DIGITS = 8  # of a fingerprint


def name_images(config: RunConfig, run: RunFolder, target: Target, data: str | None, variant: str | None) -> str:
    """Return the name of the images that a run, or whatever the recipe describes, is evaluated on.

    data, variant: the arguments of `evaluate`. If the recipe's training images are not the run's, neither is its split.
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
    """Return the fingerprint of a recipe's validation views, whatever the images."""
    return ViewPlan(evaluation_policy(config), seed=0, num_samples=1).appearance


def changed_views(config: RunConfig, run: RunFolder) -> str | None:
    """Return the fingerprint of the validation views if overrides changed them; None for the run's own."""
    if not run.recipe.is_file() or (views := views_of(config)) == views_of(run.read_recipe(config)):
        return None
    return views


def split_name(split: str) -> str:
    """Return the name for a run's own split: the split's, in one path component that MLflow accepts in a metric."""
    return re.sub(r"[^\w.\- ]", "-", split) or "images"


def folder_name(place: str) -> str:
    """Return the last part of a folder or URI, with only characters that MLflow accepts in a metric's name.

    Without a URI's options: they hold keys, and a name goes into files and onto servers.
    """
    return split_name(shown_location(place).rpartition("/")[2] if is_uri(place) else Path(place).resolve().name)


def distinct_name(name: str, fingerprint: str, own: str | None) -> str:
    """Return the name unchanged for images with the fingerprint `own`; for others, with digits of theirs.

    Results of earlier versions may have a bare name for any images.
    """
    digits = f"-{fingerprint[:DIGITS]}"
    return name if fingerprint == own or name.endswith(digits) else f"{name}{digits}"

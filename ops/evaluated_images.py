"""What the images of an evaluation are called: two sets never have one name.

A run's own validation split has its name in the recipe, such as `val`. Other images have the name of their folder, or
of their variant, with the first digits of their fingerprint: many a folder is called `val`.
"""

from __future__ import annotations

import re
from pathlib import Path

from cluster.config import RunConfig
from cluster.images import open_data
from cluster.tracking.folder import RunFolder
from pipelines.data.variants import Target

DIGITS = 8  # of a fingerprint


def name_images(config: RunConfig, run: RunFolder, target: Target, data: str | None, variant: str | None) -> str:
    """Return the name of the images that a run, or whatever the recipe tells of, is evaluated on.

    data, variant: as `evaluate` is given them. A recipe whose training images are not the run's has not its split.
    """
    indexes, fingerprint = open_data(config, reuse_index=True), target.index.fingerprint
    is_runs = run.data_fingerprint() in (None, indexes["train"].fingerprint)
    own = indexes["val"].fingerprint if is_runs else None
    if variant is None and (data is None or fingerprint == own):
        return distinct_name(config.data.val_split, fingerprint, own)
    return distinct_name(variant or folder_name(str(data)), fingerprint, own)


def folder_name(place: str) -> str:
    """Return the last part of a folder or URI, with the characters that MLflow takes in a metric's name."""
    return re.sub(r"[^\w.\- ]", "-", Path(place).resolve().name) or "images"


def distinct_name(name: str, fingerprint: str, own: str | None) -> str:
    """Return a name as it is for the images with the fingerprint `own`, for others with digits of theirs.

    Results of earlier versions may have a bare name for any images.
    """
    digits = f"-{fingerprint[:DIGITS]}"
    return name if fingerprint == own or name.endswith(digits) else f"{name}{digits}"

"""What can be known of a run before its workers start, and is refused there: without Ray, which takes seconds to wake.

Not here: how a run is started (`cluster.training.launch`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import RunConfig
from cluster.environment import require_compiler
from cluster.resources import uses_gpu
from pipelines.data.folder import require_root
from pipelines.places import Place

if TYPE_CHECKING:
    from cluster.assembly import Assembly


def check_run(config: RunConfig) -> str:
    """Refuse everything about a run that can be known without its workers: files, names, taps, sizes, shapes.

    Return the fingerprint of its training images.
    """
    return checked_parts(config).indexes["train"].fingerprint


def checked_parts(config: RunConfig) -> Assembly:
    """Return the parts of a run on the CPU, checked, and used up by having been tried. Refused as `check_run`."""
    check_names(config)
    import torch

    from cluster.assembly import assemble  # here alone: what is wrong with a name is said before these wake
    from cluster.probing import check_probing, wants_probing
    from cluster.rank import Rank
    from cluster.rehearsal import rehearse_run
    from kdcore.optim import build_optimizer

    parts = assemble(config, Rank(0, 1, torch.device("cpu")))
    build_optimizer(config.optimizer, parts.student)
    rehearse_run(parts)
    if wants_probing(config):
        check_probing(parts)
    return parts


def check_names(config: RunConfig) -> None:
    """Refuse a folder of images that is not there, networks and files that are unknown, and devices that are absent."""
    place = Place.of(config.data.root, "data.root")
    if place.is_local:
        require_root(Path(place.root))
    for model in (config.student, *config.all_teachers):
        model.check()
    if os.environ.get("RAY_ADDRESS"):  # a cluster's nodes may have what this machine lacks
        return
    uses_gpu(config)
    if config.train.compile:
        require_compiler()

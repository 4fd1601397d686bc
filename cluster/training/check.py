"""What is checked of a run before its workers start: without Ray, which takes seconds to start.

Not here: how a run is started (`cluster.training.launch`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.environment import require_compiler
from cluster.nodes.resources import rank_alone, uses_gpu
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import check_may_be_trained
from kdcore.errors import Refused
from kdcore.importing import importing
from pipelines.data.folder import require_root
from pipelines.places import Place

if TYPE_CHECKING:
    import torch

    from cluster.assembly import Assembly


def check_run(config: RunConfig) -> dict[str, Any]:
    """Refuse everything about a run that can be known without its workers: rules, files, names, taps, sizes, shapes.

    Return what tells its images from others, as `cluster.images.image_facts` does.
    """
    check_may_be_trained(config)
    check_names(config)
    with importing("cluster.outline"):  # only here: a wrong name is reported before these are imported
        from cluster.images import image_facts
        from cluster.outline import on_meta_or_cpu

    parts = on_meta_or_cpu(lambda device: checked_parts(config, device))
    return image_facts(parts.indexes)


def checked_parts(config: RunConfig, device: torch.device) -> Assembly:
    """Return the parts of a run on a device, checked, and used up by that. Refused as `check_run`.

    On the meta device networks have shapes only: those that train are the workers'.
    """
    from cluster.assembly import assemble
    from cluster.batches import Batches
    from cluster.images import check_apart
    from cluster.probing import check_probing
    from cluster.rank import Rank
    from cluster.rehearsal import rehearse_run
    from cluster.training.validation import check_choice
    from kdcore.optim import build_optimizer

    parts = assemble(config, Rank(0, 1, device))
    check_apart(config, parts.indexes)
    Batches.of(config, len(parts.indexes["train"]))  # refuses what cannot be divided
    build_optimizer(config.optimizer, parts.student)
    rehearse_run(parts)
    check_probing(parts)
    check_choice(parts)
    return parts


def check_names(config: RunConfig) -> None:
    """Refuse a missing folder of images, unknown networks and files, a hub for checkpoints, and absent devices."""
    place = Place.of(config.data.root, "data.root")
    if place.is_local:
        require_root(Path(place.root))
    if config.storage.startswith("hf://"):  # pyarrow knows it, but a hub is no store that files come and go in
        raise Refused(
            f"checkpoint.storage={config.storage}: a hub keeps every file as a commit, so no checkpoint can be "
            "replaced there; give a folder or an object store, such as s3://bucket/folder"
        )
    for model in (config.student, *config.all_teachers):
        model.check()
    if os.environ.get("RAY_ADDRESS"):  # a cluster's nodes may have what this machine lacks
        return
    uses_gpu(config)
    if config.train.compile:
        require_compiler()


def check_this_process(config: RunConfig) -> None:
    """Refuse what this process lacks to train a run without Ray's workers, whatever a cluster's nodes have.

    A sweep's driver checks such runs as well, and trains none: their own processes may be on other machines.
    """
    if config.scaling.num_workers == 0:
        rank_alone(config)
        if config.train.compile:
            require_compiler()

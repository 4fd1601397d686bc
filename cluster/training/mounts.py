"""Which of a run's folders a node must see, checked by each worker before it builds anything."""

from __future__ import annotations

import socket
from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.paths import paths_of
from kdcore.errors import Refused
from kdcore.located import is_uri

NEEDED = ("output_dir", "data.root", "cache.dir")  # weights are looked for, and named, where networks are built


def refuse_missing_mounts(config: RunConfig) -> None:
    """Refuse a node that does not see a folder that the recipe names, naming the node and what is missing.

    It is missing only on this node: the driver has checked its own before anything began.
    """
    reads_cache = any(teacher.cached for teacher in config.all_teachers)
    for key, path in paths_of(config):
        if key not in NEEDED or is_uri(path) or (key == "cache.dir" and not reads_cache):
            continue
        if not Path(path).exists():
            raise Refused(
                f"{key}: {path} does not exist on the node {socket.gethostname()} (only {nearest(Path(path))} does); "
                "mount it there at the same place as on the other nodes, or keep that node out of the cluster"
            )


def nearest(path: Path) -> Path:
    """Return the nearest existing folder above a path."""
    return next(folder for folder in path.absolute().parents if folder.exists())

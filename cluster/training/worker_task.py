"""What the driver of a run gives each of its workers.

Neither torch nor Ray is imported here: the driver of a sweep's trial holds no torch, and a run in one process no Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cluster.training.progress import Watcher
from pipelines.leases import Fence


@dataclass(frozen=True)
class WorkerTask:
    """A run, as each of its workers gets it, and how the worker reaches its driver.

    config: the recipe as plain values; plugins: {plug-in: hash}; versions: {library: version} of the driver;
    newest_step: of the latest checkpoint, None where there is none; fence: of the lease on the run's folder;
    watches_nodes: whether Ray Train watches for nodes that are taken away; weights: {network: {what: fingerprint}} of
    the files that the driver has found.

    board: where progress goes, and where the driver asks the run to end; None where the one worker is in the driver's
    process, which then has these called or set itself: watch, stop, and open_run, which opens the run in its trackers.
    """

    config: dict[str, Any]
    plugins: dict[str, str]
    versions: dict[str, str]
    newest_step: int | None
    fence: Fence
    watches_nodes: bool
    weights: dict[str, dict[str, str]] = field(default_factory=dict)
    board: Any = None
    watch: Watcher | None = None
    stop: threading.Event | None = None
    open_run: Callable[[], None] | None = None

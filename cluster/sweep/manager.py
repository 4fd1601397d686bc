"""The one process of a sweep that opens and closes its trials' runs: it has torch and MLflow, and they do not.

A process that holds an actor's handle imports the actor's module; so what it does is imported only in its own process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from cluster.nodes.start import on_this_node

if TYPE_CHECKING:
    from cluster.sweep.trial import TrialTask
    from cluster.training.fitting import Job
    from pipelines.leases import Fence


class RunManager:
    """Opens and closes the runs of a sweep's trials, one call at a time, as `cluster.sweep.runs` says.

    credentials: {dotted key: value} of the addresses in their recipes with what was cut out of the tasks.
    """

    def __init__(self, credentials: Mapping[str, str]) -> None:
        self.credentials = credentials

    def open(self, task: TrialTask, fence: Fence) -> Job | None:
        from cluster.sweep.runs import open_trial

        return open_trial(task, self.credentials, fence)

    def finish(self, task: TrialTask, final: Mapping[str, Any], wall_seconds: float) -> None:
        from cluster.sweep.runs import finish_trial

        finish_trial(task, self.credentials, final, wall_seconds)

    def fail(self, task: TrialTask, error: str | None) -> None:
        from cluster.sweep.runs import fail_trial

        fail_trial(task, self.credentials, error)


def start_manager(credentials: Mapping[str, str]) -> Any:
    """Start a `RunManager` in a process of its own on this node, again whenever it is lost; return its handle."""
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": 2, "scheduling_strategy": on_this_node()}
    return ray.remote(RunManager).options(**options).remote(credentials)

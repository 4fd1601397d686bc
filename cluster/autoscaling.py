"""What a cluster may grow to: cores and GPUs of the nodes that its autoscaler can bring, where anybody says so.

Ray itself does not say it on most clusters. `ray up` leaves its file on the head, where submitted jobs run; an operator
such as KubeRay keeps the node types to itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.strict_yaml import read_yaml_file

RAY_UP_FILE = Path("~/ray_bootstrap_config.yaml")
KUBERAY = "RAY_CLUSTER_NAME"  # KubeRay sets it in every pod, with an autoscaler or without


def gpus_to_come() -> float | None:
    """Return how many GPUs the nodes that may yet come can have; as `resources_to_come`."""
    most = resources_to_come()
    return None if most is None else most.get("GPU", 0.0)


def resources_to_come() -> dict[str, float] | None:
    """Return what the nodes that may yet come to this process's cluster can have, those that have come too.

    {"CPU": cores, "GPU": devices}; empty where nothing brings nodes, None where something does and does not say which.
    """
    if (stated := _stated_by_ray()) is not None:
        return stated
    file = RAY_UP_FILE.expanduser()
    if file.is_file():
        return resources_of_ray_up(read_yaml_file(file))
    return None if os.environ.get(KUBERAY) else {}


def resources_of_ray_up(config: Mapping[str, Any]) -> dict[str, float] | None:
    """Return what all nodes that a file of `ray up` allows have; None where it leaves a node's resources open.

    Of nodes whose GPUs alone are stated, the cores are as many as one likes.
    """
    types = config.get("available_node_types") or {}
    most = {"CPU": 0.0, "GPU": 0.0}
    for name, kind in types.items():
        # Workers may be of the head's type too: all are in what Ray makes of a file for machines of one's own.
        unstated = 0 if name == config.get("head_node_type") else config.get("max_workers", 0)
        number, resources = float(kind.get("max_workers", unstated)), kind.get("resources") or {}
        if not number:
            continue
        if "CPU" not in resources and "GPU" not in resources:
            return None
        most["CPU"] += number * float(resources.get("CPU", math.inf))
        most["GPU"] += number * float(resources.get("GPU", 0))
    return most if types else None


def _stated_by_ray() -> dict[str, float] | None:
    """Return what the cluster's configuration in Ray's own store says; None without one."""
    from ray._private.state import state  # here alone: who asks is on a cluster

    limits = state.get_max_resources_from_cluster_config()
    return None if limits is None else {name: float(limits.get(name, 0)) for name in ("CPU", "GPU")}

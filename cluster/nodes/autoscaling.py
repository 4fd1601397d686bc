"""What a cluster may grow to: cores and GPUs of the nodes that its autoscaler can add, where that is known.

On most clusters Ray itself does not report it. `ray up` leaves its file on the head, where submitted jobs run; an
operator such as KubeRay does not expose the node types.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.recipe.strict_yaml import read_yaml_file

RAY_UP_FILE = Path("~/ray_bootstrap_config.yaml")
KUBERAY = "RAY_CLUSTER_NAME"  # KubeRay sets it in every pod, with or without an autoscaler


def gpus_to_come() -> float | None:
    """Return the number of GPUs in `resources_to_come`; None where that is unknown."""
    most = resources_to_come()
    return None if most is None else most.get("GPU", 0.0)


def resources_to_come() -> dict[str, float] | None:
    """Return the resources of all nodes that this process's cluster may grow to, including those present.

    {"CPU": cores, "GPU": devices}; empty where nothing adds nodes, None where something does without saying which.
    """
    if (stated := _stated_by_ray()) is not None:
        return stated
    file = RAY_UP_FILE.expanduser()
    if file.is_file():
        return resources_of_ray_up(read_yaml_file(file))
    return None if os.environ.get(KUBERAY) else {}


def resources_of_ray_up(config: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the resources of all nodes that a file of `ray up` allows; None where it leaves a node's resources open.

    Where only a node's GPUs are stated, its cores count as infinite.
    """
    types = config.get("available_node_types") or {}
    most = {"CPU": 0.0, "GPU": 0.0}
    for name, kind in types.items():
        # Workers may be of the head's type too: all are in what Ray makes of a file for on-premise machines.
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
    """Return the limits in the cluster configuration that Ray's own store holds; None without one."""
    from ray._private.state import state  # imported only here: the caller is on a cluster

    limits = state.get_max_resources_from_cluster_config()
    return None if limits is None else {name: float(limits.get(name, 0)) for name in ("CPU", "GPU")}

"""How many runs of a sweep go at a time: cores, GPUs, and the memory of the processes that drive them.

A trial has a process of its own, and Ray Train has four for each run: its controller, the rendezvous of the ranks, the
one that frees the place of a stopped run, and ours with the progress. They take no core: the workers are counted by
themselves, and with a core for each such process, a cluster full of them would have no place for a worker. They take
memory, which Ray is told, so that trials go where there is some left, and not all to the head.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import ray

from cluster.nodes.autoscaling import resources_to_come
from cluster.nodes.resources import run_resources
from cluster.recipe.config import RunConfig
from kdcore.errors import Refused

# Private memory, measured on Ray 2.60: 125 MB the trial's process, 124 the controller, 112, 117 and 63 the others.
TRIAL_BYTES = 550_000_000
MANAGER_BYTES = 640_000_000  # for all trials together: `cluster.sweep.manager`, which has torch and MLflow
NO_MEMORY = 1  # Tune does not take 0


def trial_resources(concurrent: int, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what Ray reserves for the processes of one trial. nodes: the resources of each.

    One trial at a time runs whatever memory Ray sees; of several, some wait where a cluster has yet to grow.
    """
    fits = concurrent > 1 or trials_in_memory(nodes) >= 1
    return {"CPU": 0, "memory": TRIAL_BYTES if fits else NO_MEMORY}


def trials_in_memory(nodes: Sequence[Mapping[str, float]]) -> int:
    """Return the number of trials whose own processes fit in the memory of the nodes."""
    return sum(int(node.get("memory", 0) // TRIAL_BYTES) for node in nodes)


def nodes_here() -> list[Mapping[str, float]]:
    """Return the resources of each node of the connected Ray cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def runs_that_fit(config: RunConfig, have: Mapping[str, float]) -> int:
    """Return how many runs fit on a cluster at a time. have: {resource: amount} of the cluster, inf if unlimited."""
    fitting = min(have.get(name, 0) / amount for name, amount in run_resources(config).items() if amount)
    return int(min(fitting, sys.maxsize))


def local_concurrency(config: RunConfig, asked: int | None) -> int:
    """Return how many runs go at a time on this machine only.

    As many as asked for, since its cores can be shared, else as many as fit on them; its memory cannot be shared.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    wanted = asked or max(1, runs_that_fit(config, {"CPU": os.cpu_count() or 1, "GPU": float("inf")}))
    return max(1, min(wanted, trials_in_memory([{"memory": memory}])))


def concurrency(config: RunConfig, asked: int | None) -> int:
    """Return how many runs go at a time on the connected Ray cluster.

    As many as fit, at most as many as asked for; the others wait. A cluster that grows counts as what its autoscaler
    can make of it, whatever there is now. Refused where not even one fits, nor ever will.
    """
    have, to_come = ray.cluster_resources(), resources_to_come()
    room = runs_that_fit(config, have)
    if to_come is None:  # what can come is unknown
        return asked or max(1, room)
    most = {name: max(have.get(name, 0), to_come.get(name, 0)) for name in ("CPU", "GPU")}
    at_most = runs_that_fit(config, most)
    if at_most < 1:
        wanted = ", ".join(f"{amount:g} {name}" for name, amount in run_resources(config).items() if amount)
        raise Refused(
            f"a run takes {wanted}, and the cluster has {most['CPU']:g} CPU, {most['GPU']:g} GPU"
            f"{' at most' if to_come else ''}; lower scaling.num_workers or scaling.cpus_per_worker"
        )
    if at_most > room:  # new nodes bring memory, for which Ray lets trials wait
        return min(at_most, asked or at_most)
    return max(1, min(room, asked or room, trials_in_memory(nodes_here())))

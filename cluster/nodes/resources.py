"""Devices and places: where a worker, a cache build, an evaluation or a scoring of layers runs, decided only here.

A recipe says `scaling.use_gpu`: true, false, or nothing, which means GPUs where there are enough for its workers. One
rule holds for everything that belongs to one recipe: its runs, its cache, its evaluations.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.interruption import keeping_handlers
from cluster.nodes.autoscaling import gpus_to_come
from cluster.nodes.local import keep_token_private, on_loopback
from cluster.nodes.start import join_cluster, start_ray
from cluster.provenance import JOB_VARIABLE, submitted_job
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from kdcore.errors import Refused
from kdcore.importing import importing
from kdcore.remarks import warn_once

SETUP_HOOK = "worker_process_setup_hook"
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
NO_GPU = (
    "scaling.use_gpu is true, but PyTorch sees no GPU on this machine; leave it out, or set it to false, "
    "to use the CPU (`python -m ops doctor` says what is missing)"
)


@dataclass(frozen=True)
class Gpus:
    """The GPUs within reach of a recipe.

    present: now; to_come: at most, on nodes that an autoscaler can add, None where it does not say; is_cluster: of a
    Ray cluster rather than of this machine; is_shared: of a cluster that is, or may become, more than this machine, or
    that a job was sent to.
    """

    present: float
    to_come: float | None = 0.0
    is_cluster: bool = False
    is_shared: bool = False


def uses_gpu(config: RunConfig) -> bool:
    """Return whether what belongs to a recipe is computed on GPUs.

    That is so if the recipe says so, or if it leaves it open and the connected Ray cluster (without one, this machine)
    has enough for all of its workers, or for the fewest it may go on with, or can add them. Refused where this machine
    is asked for a GPU that it does not have, and where a cluster's answer would depend on the moment. A warning says so
    where a recipe that leaves it open ends up on the CPU despite GPUs or on a cluster.
    """
    scaling = config.scaling
    if scaling.use_gpu is False:
        return False
    gpus = gpus_in_reach()
    if scaling.use_gpu:
        if not gpus.is_cluster and gpus.present == 0:
            raise Refused(NO_GPU)
        return True
    needed = (scaling.min_workers or scaling.num_ranks) * scaling.gpus_per_worker
    if gpus.present >= needed:
        return True
    if gpus.to_come is None:
        raise Refused(
            f"scaling.use_gpu is not given; the cluster has {gpus.present:g} GPU now, and what its autoscaler can "
            "bring is not known here; add scaling.use_gpu=true, which waits for them, or scaling.use_gpu=false"
        )
    if gpus.to_come >= needed:
        return True
    most = max(gpus.present, gpus.to_come)
    if gpus.is_shared and most:
        raise Refused(
            f"scaling.use_gpu is not given; the workers take {needed:g} GPUs and the cluster has {most:g} at most; "
            "lower scaling.num_workers, give scaling.min_workers, or add scaling.use_gpu=false to use the CPU"
        )
    if most:
        warn_once(f"on the CPU: the workers take {needed:g} GPUs, and {most:g} are there; see scaling.num_workers")
    elif gpus.is_shared:
        warn_once("on the CPU: no node of the cluster has a GPU (scaling.use_gpu=true waits for one)")
    elif NVIDIA_DRIVER.exists():
        warn_once("on the CPU: this machine has NVIDIA's driver, but PyTorch sees no GPU (see `python -m ops doctor`)")
    return False


def gpus_in_reach() -> Gpus:
    """Return the GPUs of the connected Ray cluster, or of this machine where there is none."""
    ray = sys.modules.get("ray")  # a process in a cluster has imported it; here it would take half a second
    if ray is None or not ray.is_initialized():
        return Gpus(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    to_come = gpus_to_come()
    is_shared = JOB_VARIABLE in os.environ or to_come != 0 or sum(node["Alive"] for node in ray.nodes()) > 1
    return Gpus(ray.cluster_resources().get("GPU", 0), to_come, True, is_shared)


def device_here(config: RunConfig) -> torch.device:
    """Return the device on which this process computes for a recipe."""
    return torch.device("cuda" if uses_gpu(config) else "cpu")


def device_of_worker() -> torch.device:
    """Return the device of a Ray task or actor: the GPU that Ray gave it, if any."""
    import ray

    return torch.device("cuda" if ray.get_gpu_ids() else "cpu")


def rank_here(config: RunConfig) -> Rank:
    """Return the one rank of work done for a recipe in this process."""
    return Rank(0, 1, device_here(config))


def rank_alone(config: RunConfig) -> Rank:
    """Return the one rank of a run that this process trains alone: on the GPU that it sees, unless use_gpu is false.

    Unlike `rank_here` it asks no cluster: a sweep gives the process of such a run a GPU, or hides them all. Refused
    where the recipe asks for a GPU that is absent.
    """
    has_gpu = config.scaling.use_gpu is not False and torch.cuda.is_available()
    if config.scaling.use_gpu and not has_gpu:
        raise Refused(NO_GPU)
    return Rank(0, 1, torch.device("cuda:0" if has_gpu else "cpu"))


def use_worker_threads(config: RunConfig) -> None:
    """Let this process compute with as many threads as Ray gives a worker: one for each of its cores."""
    torch.set_num_threads(max(1, int(config.scaling.cpus_per_worker)))


def worker_resources(config: RunConfig) -> dict[str, float]:
    """Return the resources that one worker takes of the Ray cluster: {"CPU": cores, "GPU": devices}."""
    return {
        "CPU": config.scaling.cpus_per_worker,
        "GPU": config.scaling.gpus_per_worker if uses_gpu(config) else 0.0,
    }


def run_resources(config: RunConfig) -> dict[str, float]:
    """Return the resources that a run's workers take together."""
    workers = config.scaling.num_ranks
    return {name: workers * amount for name, amount in worker_resources(config).items()}


def runtime_env(**env_vars: str) -> dict[str, Any]:
    """Return `ray.init`'s runtime_env: variables for the cluster's processes, and RAY_ADDRESS, once each knows it.

    Ray Train frees the place of a run whose controller was killed (as a sweep kills a run it stops) by asking the
    cluster it finds on its machine. Where there are two, that fails, and the place stays taken until the driver ends.
    """

    def set_address() -> None:  # nested, so that it travels by value: a worker may not know this module yet
        import os

        import ray

        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address

    own = (submitted_job() or {}).get("runtime_env") or {}
    if SETUP_HOOK in own:  # the job's own, besides which Ray takes no other
        return {"env_vars": env_vars | {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]}}
    return {"env_vars": env_vars, SETUP_HOOK: set_address}


@contextmanager
def ray_session(config: RunConfig, *, stops_runs: bool = False) -> Iterator[None]:
    """Enter the connected Ray cluster, the one that RAY_ADDRESS names, or one on this machine for this run.

    stops_runs: whether a run may be killed here while others go on, as a sweep does.
    """
    if config.scaling.num_workers == 0:
        yield
        return
    with importing("ray"):
        import ray

    if ray.is_initialized():
        yield
        return
    with keeping_handlers():
        enter_ray(config, stops_runs=stops_runs)
    try:
        yield
    finally:
        ray.shutdown()


def enter_ray(config: RunConfig, *, stops_runs: bool = False) -> None:
    """Enter the Ray cluster that RAY_ADDRESS names, or start one on this machine.

    Ray asks its dashboard which runs are dead, to free what they held. Where none is killed but with its whole cluster,
    there is no dashboard: it is eight processes, which take two seconds of a processor to start.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        join_cluster(runtime_env=runtime_env(), **quiet)
    else:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # this machine is not preempted
        cpus = max(os.cpu_count() or 1, math.ceil(config.scaling.num_workers * config.scaling.cpus_per_worker))
        env = runtime_env(PYTHONPATH=str(Path(__file__).parents[2]), TOKENIZERS_PARALLELISM="false")
        keep_token_private()
        with on_loopback():
            start_ray(num_cpus=cpus, include_dashboard=stops_runs, runtime_env=env, **quiet)

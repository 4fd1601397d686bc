"""A cluster without a node for work, whose autoscaler brings them: a run waits with words, and then trains.

The nodes are Ray's own fake ones, processes of this machine. (`ray.cluster_utils.AutoscalingCluster` is not used: it
begins and ends with `ray stop --force`, which ends every Ray of the machine.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from cluster.nodes.autoscaling import RAY_UP_FILE
from cluster.nodes.resources import Gpus, gpus_in_reach, run_resources, runtime_env, uses_gpu
from cluster.recipe.reading import parse
from cluster.sweep.room import concurrency
from cluster.training.launch import launch
from kdcore.errors import Refused, RunFailed
from tests.cluster.machines import RAY, ROOT, free_port, kill_family, start_node
from tests.cluster.nodes.late_nodes import MAY_COME, LateNodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]

NODE_TYPES: dict[str, Any] = {
    FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 1},
}


@pytest.fixture(scope="module")
def from_zero(worker_executable: str) -> Iterator[Path]:
    """This process as the driver on a head without CPUs, which can have two nodes of two and one with a GPU.

    Both find what `ray up` leaves there: a file in the home directory. Yields the file whose making lets nodes come.
    """
    folder = Path(tempfile.mkdtemp(prefix="auto-"))  # short: Ray puts sockets below it
    port, file = free_port(), folder / RAY_UP_FILE.name
    file.write_text(yaml.safe_dump(configuration(port)))
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder / 'ray'}"]
    command += [f"--autoscaling-config={file}"]
    names = ("dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    command += [f"--{name}={free_port()}" for name in names]
    # The provider knows its head by this number.
    env = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "PYTHONPATH": str(ROOT),
        MAY_COME: str(folder / "may-come"),
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }
    env.pop("RAY_ADDRESS", None)
    with pytest.MonkeyPatch.context() as patch, start_node(command, env) as process:
        patch.setenv("HOME", str(folder))
        try:
            environment = runtime_env(PYTHONPATH=str(ROOT)) | {"py_executable": worker_executable}
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            ray.init(address=f"127.0.0.1:{port}", runtime_env=environment, **quiet)
            yield folder / "may-come"
        finally:
            ray.shutdown()
            kill_family(process, first="monitor")  # which would bring new nodes
    shutil.rmtree(folder, ignore_errors=True)


def configuration(port: int) -> dict[str, Any]:
    """What `ray up` would leave on a head. (The name of Ray's fake provider wants a file that Ray's wheel lacks.)"""
    module = f"{LateNodes.__module__}.{LateNodes.__name__}"
    plain = dict.fromkeys(("launch_multiple", "disable_node_updaters", "disable_launch_config_check"), True)
    plain["use_node_id_as_ip"] = True  # all nodes have one address
    head = {"head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": f"{ray.util.get_node_ip_address()}:{port}"}
    unused = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{f"{name}_commands": [] for name in unused},
        **{name: {} for name in ("file_mounts", "docker", "auth")},
        "provider": {"type": "external", "module": module, **plain, **head},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": NODE_TYPES,
    }


def test_from_zero_nodes(from_zero, recipe):
    """Nothing is taken for what there is at that moment: no node has a CPU when the run begins."""
    assert ray.cluster_resources().get("CPU", 0) == 0
    heard: list[str] = []

    def let_nodes_come(state: dict[str, Any], messages: list[str]) -> None:
        heard.extend(messages)
        if messages and messages[0].startswith("waiting for 2 x 1 CPU (cluster: 0 CPU on 0 nodes), at most"):
            from_zero.touch()

    config = parse(recipe(scaling={"num_workers": 2, "use_gpu": False, "patience_seconds": 400}))
    assert concurrency(config, None) == 2, "what a sweep would run at a time: on two nodes, of which none is there"
    result = launch(config, watch=let_nodes_come)
    assert concurrency(config, None) == 2
    print(f"{heard}: {result.wall_seconds:.0f} s")
    assert from_zero.exists(), heard
    assert result.steps == 12
    assert ray.cluster_resources()["CPU"] == 2


def test_a_recipe_that_leaves_it_open_looks_at_the_node_types(from_zero, recipe):
    """No node has a GPU, and one can come: it is what a recipe for one worker asks for, at any moment alike."""
    assert ray.cluster_resources().get("GPU", 0) == 0
    assert gpus_in_reach() == Gpus(0, 1, is_cluster=True, is_shared=True)
    assert run_resources(parse(recipe())) == {"CPU": 1, "GPU": 1}
    with pytest.raises(Refused, match=r"the workers take 2 GPUs and the cluster has 1 at most; lower"):
        uses_gpu(parse(recipe(scaling={"num_workers": 2})))
    assert not uses_gpu(parse(recipe(scaling={"num_workers": 2, "use_gpu": False})))


def test_a_node_with_a_gpu_comes_for_a_recipe_that_leaves_it_open(from_zero, recipe):
    """Its worker is placed there, not silently on a CPU. (That node's GPU is a number: without a real one it ends.)"""
    from_zero.touch()
    config = parse(recipe(name="open", scaling={"num_workers": 1, "max_failures": 0, "patience_seconds": 400}))
    with contextlib.nullcontext() if torch.cuda.is_available() else pytest.raises(RunFailed) as caught:
        launch(config)
    print(caught and caught.value)
    assert ray.cluster_resources()["GPU"] == 1

"""A cluster without a node for work, whose autoscaler brings them: a run waits with words, and then trains.

The nodes are Ray's own fake ones, processes of this machine. (`ray.cluster_utils.AutoscalingCluster` is not used: it
begins and ends with `ray stop --force`, which ends every Ray of the machine.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from cluster.recipe import parse
from cluster.resources import Gpus, gpus_in_reach, runtime_env
from cluster.training.launch import launch
from tests.cluster.machines import RAY, ROOT, free_port, kill_family

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

# As the fake provider knows its head.
HEAD_ID, HEAD_TYPE = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000", "ray.head.default"
CONFIG = {
    "cluster_name": "fake",
    "max_workers": 2,
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "provider": {"type": "fake_multinode"},
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "head_node": {},
    "worker_nodes": {},
    "head_node_type": HEAD_TYPE,
    "available_node_types": {
        HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
}


@pytest.fixture(scope="module")
def from_zero() -> Iterator[None]:
    """This process as the driver on a head without CPUs, which can have two nodes of two."""
    folder = Path(tempfile.mkdtemp(prefix="auto-"))  # short: Ray puts sockets below it
    (folder / "autoscaling.yaml").write_text(yaml.safe_dump(CONFIG))
    port = free_port()
    command = [str(RAY), "start", "--head", "--block", "--num-cpus=0", f"--port={port}", f"--temp-dir={folder / 'ray'}"]
    command += [f"--autoscaling-config={folder / 'autoscaling.yaml'}"]
    names = ("dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    command += [f"--{name}={free_port()}" for name in names]
    # The provider starts its nodes with this process's modules, and finds the head by this number.
    settings = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    }
    env = os.environ | settings
    env.pop("RAY_ADDRESS", None)
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    with subprocess.Popen(command, env=env, **options) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "Ray runtime started" in line:
                    break
            else:
                pytest.fail("".join(said))
            environment = runtime_env(PYTHONPATH=str(ROOT))
            address = f"127.0.0.1:{port}"
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment)
            yield
        finally:
            ray.shutdown()
            kill_family(process)
    shutil.rmtree(folder, ignore_errors=True)


def test_from_zero_nodes(from_zero, recipe):
    """Nothing is taken for what there is at that moment: no node has a CPU when the run begins."""
    assert ray.cluster_resources().get("CPU", 0) == 0
    assert gpus_in_reach() == Gpus(0, 0, is_cluster=True), "its node types have no GPU"
    heard: list[str] = []
    config = parse(recipe(scaling={"num_workers": 2, "patience_seconds": 600}))
    result = launch(config, watch=lambda state, messages: heard.extend(messages))
    assert result.steps == 12
    assert any(line.startswith("waiting for 2 x 1 CPU (cluster: 0 CPU on 0 nodes), at most") for line in heard), heard
    assert ray.cluster_resources()["CPU"] == 2

"""A node that is taken away, as spot machines are: announced by Ray, answered by a checkpoint before the deadline."""

from __future__ import annotations

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2

from tests.attacks.training import Training, endless_recipe
from tests.cluster.machines import Machines, cluster_of
from tests.cluster.servers import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = 25  # from the notice to the end of the node


def announce_the_end(machines: Machines, address: str) -> None:
    """What a cloud's agent, or the autoscaler, tells Ray of a node; `ray drain-node` in this process."""
    (node,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == address and node["Alive"]]
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + SECONDS) * 1000)
    assert GcsClient(address=machines.address).drain_node(node, reason, "spot", deadline) == (True, "")


def wait_for_line(training: Training, pattern: str) -> re.Match[str]:
    """What fits the pattern in what a run says."""
    with suppress(TimeoutError):
        wait_for(lambda: re.search(pattern, training.said) or training.process.poll() is not None, 200)
    found = re.search(pattern, training.said)
    assert found, training.said
    return found


def test_a_checkpoint_is_written_before_the_node_is_gone(
    image_folder: Path, tmp_path: Path, worker_executable: str
) -> None:
    recipe = endless_recipe(image_folder, tmp_path, scaling={"num_workers": 2, "max_failures": 0})
    watched = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1"}  # which the other tests do without
    with (
        cluster_of(2) as machines,
        Training(recipe, watched | {"RAY_ADDRESS": machines.address}, worker_executable) as training,
    ):
        training.wait_for_steps()
        address = machines.busiest()
        announce_the_end(machines, address)
        saved = int(wait_for_line(training, r"is taken away at .* UTC: a checkpoint of step (\d+) is written")[1])
        assert training.saved_steps == [saved]
        found = wait_for_line(training, r"continuing at step (\d+) of")
        assert int(found[1]) == saved
        assert address not in {where for where, _ in machines.workers()}
        before = training.saved_steps
        status, said, _ = training.end(signal.SIGTERM)
        assert status == 143, said
        (last,) = set(training.saved_steps) - set(before)
        assert f"stillhouse: terminated; a checkpoint of step {last} is written; the same command continues" in said

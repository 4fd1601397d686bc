"""A node that is taken away, as spot machines are: announced by Ray, answered by a checkpoint before the deadline."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
import ray

from tests.attacks.training import Training, endless_recipe
from tests.cluster.machines import RAY, Machines, cluster_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(500)]

SECONDS = 20  # from the notice to the end of the node


def announce_the_end(machines: Machines, address: str) -> None:
    """What a cloud's agent, or the autoscaler, tells Ray of a node."""
    (node,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == address and node["Alive"]]
    words = [f"--address={machines.address}", f"--node-id={node}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message=spot", f"--deadline-remaining-seconds={SECONDS}"]
    subprocess.run([str(RAY), "drain-node", *words], check=True, capture_output=True, timeout=60)


def read_until(training: Training, pattern: str) -> re.Match[str]:
    """The first line of a run's output that has the pattern."""
    seen = []
    for line in training.process.stdout:
        seen.append(line)
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"no {pattern!r} in {''.join(seen)} {training.process.stderr.read()}")


def test_a_checkpoint_is_written_before_the_node_is_gone(image_folder: Path, tmp_path: Path) -> None:
    recipe = endless_recipe(image_folder, tmp_path, scaling={"num_workers": 2, "max_failures": 0})
    with cluster_of(1) as machines, Training(recipe, {"RAY_ADDRESS": machines.address}) as training:
        training.wait_for_steps()
        (address,) = {where for where, _ in machines.workers()}
        machines.join()
        announce_the_end(machines, address)
        saved = int(read_until(training, r"is taken away at .* UTC: a checkpoint of step (\d+) is written")[1])
        assert training.saved_steps == [saved]
        found = read_until(training, r"continuing at step (\d+) of")
        assert int(found[1]) == saved
        assert {where for where, _ in machines.workers()} != {address}
        assert training.end(signal.SIGTERM)[0] == 143

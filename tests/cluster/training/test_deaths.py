"""Deaths in one line: rank, node, cause, from Ray's own sentences; and whose fault each is."""

from __future__ import annotations

import re
import socket

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from cluster.nodes.errors import describe
from cluster.recipe.reading import parse
from cluster.sweep.trial import error_text, is_loss
from cluster.training.mounts import refuse_missing_mounts
from cluster.training.recovery import failure_of
from kdcore.errors import ClusterFailed, Refused, RunFailed
from pipelines.data.images import unreadable

# As Ray 2.60 says it.
MEMORY = (
    "Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 10.0.0.7, ID: 3ab1) was 22.90GB used / 23.43GB limit (0.977351), which exceeds the memory "
    "usage threshold of 0.95. Ray killed 1 worker(s) based on the killing policy: [(actor ID=03, task name=train, "
    "pid=4242, actual memory used=9.31GB, worker ID=11)]\nTop 10 memory users: PID MEM(GB) COMMAND"
)
NODE = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tactor_id: 0a\n\tpid: 71\n"
    "\tip: 10.0.0.9\nThe actor died because its node has died. Node Id: 77\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
PROCESS = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 71\n\tip: 10.0.0.9\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage"
)
SEGFAULT = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"


def seen(error: Exception) -> Exception:
    """The error as Ray Train hands it on."""
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", failure=error)


DEATHS = [
    (
        OutOfMemoryError(MEMORY),
        r"^rank 2: killed by Ray when its node \(10.0.0.7\) ran out of memory: 22.90GB of 23.43GB were taken",
    ),
    (
        RayActorError(error_msg=NODE),
        r"^rank 2 on 10.0.0.9: its node was lost \(health check failed due to missing too many heartbeats\)$",
    ),
    (RayActorError(error_msg=PROCESS), r"^rank 2 on 10.0.0.9: the worker's process was killed without a message"),
]


@pytest.mark.parametrize(("error", "said"), DEATHS)
def test_a_death_in_one_line(error, said, board, tmp_path):
    """The dead rank is named, not the one that only noticed it; the others are to be had again."""
    noticed = RuntimeError("[rank0] Connection closed by peer [10.0.0.9]:4")
    failures = {0: noticed, 2: seen(error)}
    text = describe(failures)
    assert re.search(said, text)
    assert "\n" not in text
    assert len(text) < 300
    assert (
        type(failure_of(WorkerGroupError("", failures), 3, board(4, set()), lambda rank: tmp_path / "none"))
        is ClusterFailed
    )
    assert is_loss(error)
    assert "\n" not in error_text(error)


def test_whose_fault_it_is(board, tmp_path):
    def kind(error, folder="without"):
        return type(failure_of(error, 2, board(4, set()), lambda rank: tmp_path / folder / str(rank)))

    def of_workers(failures):
        return WorkerGroupError("", failures)

    assert kind(of_workers({0: ValueError("a bug"), 1: RuntimeError("Connection reset by peer")})) is RunFailed
    assert kind(of_workers({0: RuntimeError("Timed out waiting 1000ms")})) is ClusterFailed
    (tmp_path / "1").write_text(SEGFAULT)
    crashed = of_workers({1: seen(RayActorError(error_msg=PROCESS))})
    assert kind(crashed) is ClusterFailed
    assert kind(crashed, folder=".") is RunFailed
    assert kind(ControllerError(ClusterFailed("waited 5 s"))) is ClusterFailed
    assert kind(ControllerError(RunFailed("wrong"))) is RunFailed
    assert not is_loss(Refused("wrong"))
    assert not is_loss(ray.exceptions.RayTaskError("f", "Traceback", ValueError("a bug")))


def test_data_that_one_node_lacks(recipe, tmp_path):
    """Its name and the folder, not "repair or remove it": the images are well, and seen from everywhere else."""
    config = parse(recipe(data__root=str(tmp_path / "shared" / "images")))
    with pytest.raises(Refused) as caught:
        refuse_missing_mounts(config)
    text = str(caught.value)
    assert re.match(rf"(output_dir|data.root): .* does not exist on the node {socket.gethostname()} \(only /", text)
    (tmp_path / "out").mkdir()
    with pytest.raises(Refused, match=rf"^data.root: {tmp_path}/shared/images does not exist on the node"):
        refuse_missing_mounts(config)
    (tmp_path / "shared" / "images").mkdir(parents=True)
    refuse_missing_mounts(config)
    error = FileNotFoundError(2, "No such file or directory")
    assert f"on the node {socket.gethostname()}; mount its folder there" in str(unreadable("/shared/a.jpg", error))

"""Packing images on a Ray cluster: a task per shard, as many at a time as there are cores, the lost ones retried."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import ray
from ray.exceptions import RayError

from cluster.nodes.errors import failure_reason
from cluster.nodes.waiting import Patience, wait_for_place, warn
from kdcore.errors import RunFailed
from pipelines.data.convert import PackJob
from pipelines.data.pack import write_shard
from pipelines.data.packing import Shards

PATIENCE_SECONDS = 1200.0  # for a first core; as `scaling.patience_seconds` by default
REMEDY = "end other work, or leave RAY_ADDRESS out to pack on this machine; the same command goes on"
_RETRIES = 3  # of a shard whose worker or node was lost


def shards_on_cluster(job: PackJob) -> Shards:
    """Return the function that writes shards of a prepared job on the cluster that this process is connected to."""

    def write(numbers: list[int]) -> Iterator[tuple[int, pa.Table]]:
        wait_for_place({"CPU": 1}, Patience(PATIENCE_SECONDS, warn, REMEDY))
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_write)
        waiting = {task.remote(job, number): number for number in numbers}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            try:
                yield waiting.pop(done), ray.get(done)
            except RayError as error:
                raise RunFailed(f"packing {job.root}: {failure_reason(error)}") from error

    return write


def _write(job: PackJob, number: int) -> pa.Table:
    """Write one shard, in a worker."""
    return write_shard(job.place, job.split, job.packing(), number)

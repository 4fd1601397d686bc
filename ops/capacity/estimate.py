"""A run on a cluster as arithmetic: from the speed of one GPU and the bytes of the training state to hours and cost.

Not here: where those numbers come from (`ops.capacity.workload`), and what failures do (`ops.capacity.simulation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean
from typing import Any

from kdcore.errors import Refused
from ops.capacity.intervals import daly_interval, young_interval
from ops.capacity.simulation import Job, Outcome, simulate_many
from ops.spread import spread

SIMULATED_RUNS = 200
HOPELESS = 10.0  # a stretch this many times as long as the time between failures is survived once in 20,000 tries


def ring_all_reduce_seconds(num_bytes: float, workers: int, bytes_per_second: float, latency_seconds: float) -> float:
    """Return the seconds in which workers in a ring add up `num_bytes` of each.

    2 (N - 1) / N bytes / bandwidth + 2 (N - 1) latency: a reduce-scatter and an all-gather of N - 1 rounds each.
    Source: P. Patarasu and X. Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", Journal of
    Parallel and Distributed Computing 69(2), 2009.
    """
    rounds = 2 * (workers - 1)
    return rounds * (num_bytes / workers / bytes_per_second + latency_seconds)


@dataclass(frozen=True)
class Cluster:
    """The machines.

    link_bytes_per_second: of the slowest link that a ring of all workers passes through; read_bytes_per_second: of a
    node; mtbf_seconds: of one worker.
    """

    num_workers: int
    num_nodes: int
    link_bytes_per_second: float
    link_latency_seconds: float
    read_bytes_per_second: float
    mtbf_seconds: float
    repair_seconds: float
    restart_seconds: float


@dataclass(frozen=True)
class Workload:
    """A run.

    images_per_second: of one worker alone; image_bytes, cached_bytes: read for each image; reduced_bytes: averaged by
    the workers at every step; checkpoint_seconds: how long a checkpoint blocks the steps; max_failures: None for no
    limit.
    """

    total_steps: int
    batch_size: int
    micro_batch: int
    images_per_second: float
    image_bytes: float
    cached_bytes: int
    reduced_bytes: int
    interval_steps: int
    checkpoint_seconds: float
    min_workers: int | None = None
    max_failures: int | None = None
    resize_seconds: float = 60.0


@dataclass(frozen=True)
class Estimate:
    """What a workload takes on a cluster. Validation is left out."""

    workload: Workload
    cluster: Cluster

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step."""
        return self.workload.batch_size // self.workload.micro_batch

    @property
    def compute_seconds(self) -> float:
        """Seconds per step of the worker with the most micro-batches."""
        most = math.ceil(self.num_micro_batches / self.cluster.num_workers)
        return most * self.workload.micro_batch / self.workload.images_per_second

    @property
    def all_reduce_seconds(self) -> float:
        """Seconds per step of averaging the gradients."""
        cluster, num_bytes = self.cluster, self.workload.reduced_bytes
        speed, latency = cluster.link_bytes_per_second, cluster.link_latency_seconds
        return ring_all_reduce_seconds(num_bytes, cluster.num_workers, speed, latency)

    @property
    def read_seconds(self) -> float:
        """Seconds in which a node reads its part of a step's batch."""
        num_bytes = self.workload.image_bytes + self.workload.cached_bytes
        return self.workload.batch_size / self.cluster.num_nodes * num_bytes / self.cluster.read_bytes_per_second

    @property
    def step_seconds(self) -> float:
        """Seconds per step: averaging follows computing, an upper bound; reading overlaps with both."""
        return max(self.compute_seconds + self.all_reduce_seconds, self.read_seconds)

    @property
    def images_per_second(self) -> float:
        """Images per second of all workers."""
        return self.workload.batch_size / self.step_seconds

    @property
    def scaling_efficiency(self) -> float:
        """The speed as a fraction of that of as many single workers."""
        return self.images_per_second / (self.cluster.num_workers * self.workload.images_per_second)

    @property
    def node_images_per_second(self) -> float:
        """Images per second of one node."""
        return self.images_per_second / self.cluster.num_nodes

    @property
    def mtbf_seconds(self) -> float:
        """Mean time between failures of the whole run."""
        return self.cluster.mtbf_seconds / self.cluster.num_workers

    @property
    def interval_seconds(self) -> float:
        """Seconds of steps from one of the recipe's checkpoints to the next."""
        return self.workload.interval_steps * self.step_seconds

    @property
    def young_seconds(self) -> float:
        """Young's optimum of `interval_seconds`."""
        return young_interval(self.workload.checkpoint_seconds, self.mtbf_seconds)

    @property
    def daly_seconds(self) -> float:
        """Daly's optimum of `interval_seconds`."""
        return daly_interval(self.workload.checkpoint_seconds, self.mtbf_seconds)

    @property
    def job(self) -> Job:
        """The run as the simulation knows it, without a limit on its failures."""
        workload, cluster = self.workload, self.cluster
        return Job(
            work_seconds=workload.total_steps * self.step_seconds,
            interval_seconds=self.interval_seconds,
            checkpoint_seconds=workload.checkpoint_seconds,
            start_seconds=cluster.restart_seconds,
            restart_seconds=cluster.restart_seconds,
            num_workers=cluster.num_workers,
            min_workers=workload.min_workers,
            num_micro_batches=self.num_micro_batches,
            workers_per_failure=cluster.num_workers // cluster.num_nodes,
            repair_seconds=cluster.repair_seconds,
            resize_seconds=workload.resize_seconds,
        )

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """Simulated runs. Refused where checkpoints are so rare that hardly any run would reach the next."""
        job, mtbf = self.job, self.mtbf_seconds
        stretch = max(min(job.interval_seconds, job.work_seconds) + job.checkpoint_seconds, job.restart_seconds)
        if stretch > HOPELESS * mtbf:
            raise Refused(
                f"a failure every {mtbf:,.0f} s is expected, but from one checkpoint to the next, or from a failure to "
                f"the next step, it takes {stretch:,.0f} s: the run would never end; lower "
                "checkpoint.every_steps, or --restart-seconds, or give a longer --mtbf-hours"
            )
        return simulate_many(job, self.cluster.mtbf_seconds, SIMULATED_RUNS)

    @property
    def num_failures(self) -> dict[str, Any]:
        """The number of failures in a run: n, mean, stdev."""
        return spread([float(one.num_failures) for one in self.outcomes])

    @property
    def goodput(self) -> dict[str, Any]:
        """The share of a run's time that the steps would take without failures and checkpoints: n, mean, stdev."""
        return spread([one.goodput for one in self.outcomes])

    @property
    def best_goodput(self) -> dict[str, Any]:
        """The same with checkpoints at Daly's interval: n, mean, stdev."""
        job = replace(self.job, interval_seconds=self.daly_seconds)
        return spread([one.goodput for one in simulate_many(job, self.cluster.mtbf_seconds, SIMULATED_RUNS)])

    @property
    def wall_seconds(self) -> dict[str, Any]:
        """Seconds of a run: n, mean, stdev."""
        return spread([one.wall_seconds for one in self.outcomes])

    @property
    def too_many_failures(self) -> float:
        """The share of runs with more failures than the recipe allows."""
        most = self.workload.max_failures
        return mean(most is not None and one.num_failures > most for one in self.outcomes)

    @property
    def gpu_hours(self) -> float:
        """The mean hours of a run, summed over its workers."""
        return float(self.cluster.num_workers * self.wall_seconds["mean"] / 3600)

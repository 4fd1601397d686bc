"""Steps, bytes, failures and hours against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest

from kdcore.errors import Refused
from ops.capacity.estimate import Cluster, Estimate, Workload, ring_all_reduce_seconds

WORKLOAD = Workload(
    total_steps=1000,
    batch_size=512,
    micro_batch=64,
    images_per_second=640.0,
    image_bytes=100_000.0,
    cached_bytes=2000,
    reduced_bytes=100_000_000,
    interval_steps=100,
    checkpoint_seconds=0.5,
)
CLUSTER = Cluster(
    num_workers=8,
    num_nodes=2,
    link_bytes_per_second=1e9,
    link_latency_seconds=1e-5,
    read_bytes_per_second=1e9,
    mtbf_seconds=math.inf,
    repair_seconds=0.0,
    restart_seconds=30.0,
)


def test_a_ring_by_rounds():
    """4 workers: 3 rounds of a quarter each to add up, 3 to gather, of 1 s and the latency."""
    assert ring_all_reduce_seconds(4e9, 4, 1e9, 0.25) == pytest.approx(6 * 1.25)
    assert ring_all_reduce_seconds(4e9, 1, 1e9, 0.25) == 0


def test_a_step():
    """Computing 64 / 640 = 0.1 s; averaging 14 x (12.5 MB / 1 GB/s + 10 us); reading 256 x 102 kB at 1 GB/s."""
    estimate = Estimate(WORKLOAD, CLUSTER)
    assert estimate.compute_seconds == pytest.approx(0.1)
    assert estimate.all_reduce_seconds == pytest.approx(0.175 + 0.00014)
    assert estimate.read_seconds == pytest.approx(0.026112)
    assert estimate.step_seconds == pytest.approx(0.27514)
    assert estimate.images_per_second == pytest.approx(512 / 0.27514)
    assert estimate.node_images_per_second == pytest.approx(256 / 0.27514)
    assert estimate.scaling_efficiency == pytest.approx(0.1 / 0.27514)


def test_a_slow_disk_bounds_the_step():
    estimate = Estimate(WORKLOAD, replace(CLUSTER, read_bytes_per_second=26.112e6))
    assert estimate.step_seconds == pytest.approx(1.0)


def test_uneven_shares_take_as_long_as_the_largest():
    """8 micro-batches on 3 workers: three of them run one after another."""
    assert Estimate(WORKLOAD, replace(CLUSTER, num_workers=3, num_nodes=1)).compute_seconds == pytest.approx(0.3)


def test_without_failures_the_run_is_its_parts():
    """A start of 30 s, 1,000 steps, 10 checkpoints of half a second."""
    estimate = Estimate(WORKLOAD, CLUSTER)
    assert estimate.wall_seconds["mean"] == pytest.approx(30 + 275.14 + 5)
    assert estimate.wall_seconds["stdev"] == pytest.approx(0)
    assert estimate.goodput["mean"] == pytest.approx(275.14 / 310.14)
    assert estimate.gpu_hours == pytest.approx(8 * 310.14 / 3600)
    assert estimate.num_failures["mean"] == 0
    assert estimate.too_many_failures == 0


def test_failures_come_as_often_as_all_workers_make_them():
    estimate = Estimate(replace(WORKLOAD, max_failures=0), replace(CLUSTER, mtbf_seconds=8 * 3600.0))
    assert estimate.mtbf_seconds == 3600
    assert estimate.interval_seconds == pytest.approx(27.514)
    assert estimate.young_seconds == pytest.approx(60)
    assert estimate.num_failures["mean"] == pytest.approx(310 / 3600, abs=0.05)
    assert estimate.too_many_failures == pytest.approx(1 - math.exp(-310 / 3600), abs=0.06)


def test_a_node_takes_its_workers_with_it():
    assert Estimate(WORKLOAD, CLUSTER).job.workers_per_failure == 4


def test_a_run_that_cannot_end_is_refused():
    with pytest.raises(Refused, match=r"a failure every 2 s .* 30 s.* lower checkpoint.every_steps"):
        _ = Estimate(WORKLOAD, replace(CLUSTER, mtbf_seconds=16.0)).outcomes

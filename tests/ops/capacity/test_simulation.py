"""The simulated run against counting by hand, and against closed forms; the closed forms against numeric optima."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from ops.capacity.intervals import daly_interval, expected_wall_seconds, young_interval
from ops.capacity.simulation import Job, Outcome, exponential_failures, failures_at, simulate, simulate_many

JOB = Job(
    work_seconds=100, interval_seconds=30, checkpoint_seconds=2, start_seconds=20, restart_seconds=10, num_workers=4
)
PARTS = ("starting_seconds", "computing_seconds", "checkpoint_seconds", "lost_seconds", "waiting_seconds")
ALL_PARTS = (*PARTS, "finishing_seconds")


def parts(outcome: Outcome) -> list[float]:
    return [getattr(outcome, name) for name in PARTS]


def test_without_failures():
    """Three checkpoints after 30 s of work each, and a last one after the 10 s left."""
    outcome = simulate(JOB, failures_at([]))
    assert parts(outcome) == [20, 100, 8, 0, 0]
    assert (outcome.wall_seconds, outcome.num_failures, outcome.num_starts, outcome.finished) == (128, 0, 1, True)
    assert outcome.goodput == 100 / 128
    assert outcome == simulate(JOB, exponential_failures(math.inf, np.random.default_rng(0)))


def test_a_failure_takes_the_run_back_to_its_checkpoint():
    """At 60 s the run is 8 s past its first checkpoint, of 52 s; it starts for 10 s and has 70 s of work left."""
    outcome = simulate(JOB, failures_at([60]))
    assert parts(outcome) == [30, 100, 8, 8, 0]
    assert outcome.wall_seconds == 128 + 10 + 8


def test_a_failure_within_a_start_begins_another():
    outcome = simulate(JOB, failures_at([5, 9]))
    assert parts(outcome) == [5 + 4 + 10, 100, 8, 0, 0]
    assert (outcome.num_failures, outcome.num_starts) == (2, 3)


def test_a_failure_within_a_checkpoint_loses_it():
    assert simulate(JOB, failures_at([51])).lost_seconds == 31


def test_a_failure_after_the_last_step_loses_no_step():
    """The steps end at 128 s; the finish is begun again after a start."""
    outcome = simulate(replace(JOB, finish_seconds=9), failures_at([131]))
    assert parts(outcome) == [30, 100, 8, 3, 0]
    assert (outcome.finishing_seconds, outcome.wall_seconds) == (9, 131 + 10 + 9)


def test_a_fixed_group_waits_for_the_repair():
    outcome = simulate(replace(JOB, repair_seconds=100, workers_per_failure=2), failures_at([60]))
    assert parts(outcome) == [30, 100, 8, 8, 100]


def test_an_elastic_group_goes_on_with_fewer_and_grows_again():
    """Two of four workers are away from 60 s to 160 s; steps of 4 micro-batches take twice as long meanwhile.

    From 70 s on, a checkpoint takes 62 s: the second is there at 132 s. A look every 50 s after 70 s finds the others
    at 170 s, 38 s into the next; then the run starts for 10 s and takes 30 + 2 + 10 + 2 s.
    """
    elastic = replace(
        JOB, min_workers=2, num_micro_batches=4, workers_per_failure=2, repair_seconds=100, resize_seconds=50
    )
    outcome = simulate(elastic, failures_at([60]))
    assert parts(outcome) == [20 + 10 + 10, 30 + 60 + 40, 8, 8 + 38, 0]
    assert outcome.wall_seconds == 170 + 10 + 32 + 12
    assert outcome.num_failures == 1


def test_a_failure_strikes_once():
    """Wherever rounding puts the time at which it strikes: each of 300 odd times is one failure."""
    times = np.cumsum(np.random.default_rng(0).exponential(0.7, 300)).tolist()
    assert simulate(replace(JOB, restart_seconds=0.3), failures_at(times)).num_failures == 300


def test_below_the_fewest_an_elastic_group_waits():
    """Of four workers three are lost in two failures; with the first two back there are three."""
    elastic = replace(JOB, min_workers=2, num_micro_batches=4, workers_per_failure=2, repair_seconds=100)
    outcome = simulate(elastic, failures_at([60, 75]))
    assert outcome.waiting_seconds == 160 - 75


@pytest.mark.parametrize(("workers", "slowdown"), [(4, 1), (3, 2), (2, 2), (1, 4)])
def test_a_step_takes_as_long_as_the_worker_with_most_to_do(workers, slowdown):
    assert replace(JOB, num_micro_batches=4).slowdown(workers) == slowdown


def test_a_run_is_given_up_after_one_failure_too_many():
    outcome = simulate(replace(JOB, max_failures=1), failures_at([60, 75, 90]))
    assert (outcome.finished, outcome.num_failures, outcome.wall_seconds, outcome.goodput) == (False, 2, 75, 0)
    assert simulate(replace(JOB, max_failures=2), failures_at([60, 75])).finished


@pytest.mark.parametrize("elastic", [{}, {"min_workers": 1, "num_micro_batches": 4}])
def test_the_parts_are_the_whole(elastic):
    job = replace(JOB, finish_seconds=7, repair_seconds=50, workers_per_failure=1, resize_seconds=20, **elastic)
    for outcome in simulate_many(job, 600, 50):
        assert sum(getattr(outcome, name) for name in ALL_PARTS) == pytest.approx(outcome.wall_seconds)
        assert outcome.finished


def test_a_seed_decides_everything():
    first, again, other = (simulate_many(JOB, 300, 5, seed) for seed in (1, 1, 2))
    assert [asdict(one) for one in first] == [asdict(one) for one in again]
    assert first != other


@pytest.mark.parametrize("repair", [0, 40])
@pytest.mark.parametrize("mtbf", [60, 400])
def test_the_mean_is_that_of_the_closed_form(repair, mtbf):
    """Of the whole run, whose four workers each fail a quarter as often; within four standard errors of 3,000 runs."""
    job = replace(JOB, work_seconds=310, finish_seconds=15, repair_seconds=repair)
    walls = [one.wall_seconds for one in simulate_many(job, 4 * mtbf, 3000, seed=3)]
    error = np.std(walls) / math.sqrt(len(walls))
    assert abs(np.mean(walls) - expected_wall_seconds(job, mtbf)) < 4 * error


def test_lost_work_is_half_an_interval_where_failures_are_rare():
    """Young's assumption: a failure strikes anywhere within the 32 s that a checkpoint takes with its work."""
    job = replace(JOB, work_seconds=3000, start_seconds=0, restart_seconds=0)
    outcomes = simulate_many(job, 4 * 2000, 1500, seed=5)
    lost, failures = (sum(getattr(one, name) for one in outcomes) for name in ("lost_seconds", "num_failures"))
    assert lost / failures == pytest.approx(16, rel=0.05)


def test_young_is_the_optimum_to_first_order():
    """Of overhead C / T + T / 2M, whose least value is found here by trying."""
    tried = np.linspace(1, 1000, 100_000)
    best = tried[np.argmin(5 / tried + tried / (2 * 3600))]
    assert young_interval(5, 3600) == pytest.approx(best, abs=0.02)
    assert young_interval(5, 3600) == math.sqrt(36_000)


@pytest.mark.parametrize(("checkpoint", "mtbf"), [(5, 3600), (5, 300), (60, 600)])
def test_daly_is_the_optimum_of_the_whole_model(checkpoint, mtbf):
    """Of the exact mean over a long run, to 1 % where checkpoints are short beside the time between failures."""
    tried = np.geomspace(5, 2000, 4000)
    means = np.expm1((tried + checkpoint) / mtbf) / tried
    assert daly_interval(checkpoint, mtbf) == pytest.approx(tried[np.argmin(means)], rel=0.01)
    wall = [
        expected_wall_seconds(Job(1e6, interval, checkpoint), mtbf)
        for interval in (daly_interval(checkpoint, mtbf), 2000)
    ]
    assert wall[0] < wall[1]


def test_dalys_limits():
    assert daly_interval(100, 50) == 50
    assert daly_interval(0, 50) == 0
    assert daly_interval(1, math.inf) == math.inf

"""What is seen of an elastic run, and how it is compared with its prediction; the runs: `ops.benchmarks.elastic`."""

import pytest

from ops.benchmarks.elastic import EVERY, REPAIR_SECONDS, STEPS, Measured, Story, compare, job_of

# Two workers take a step a second from 10 s on; one is lost at 13.5 s, at 30 s the other goes on, at 50 s they are two.
SEEN = [(10.0, 1, 2), (13.0, 4, 2), (30.0, 1, 1), (36.0, 4, 1), (50.0, 1, 2), (52.0, 3, 2)]


def test_steps_and_restarts_are_told_apart():
    story = Story(nodes=None, lost=13.5, seen=SEEN)
    assert story.step_seconds(2) == pytest.approx(1.0)
    assert story.step_seconds(1) == pytest.approx(2.0)
    assert story.restart_seconds == [16.5, 14.0]


def test_a_run_of_one_number_of_workers():
    story = Story(nodes=None, seen=SEEN[:2])
    assert story.step_seconds(1) is None
    assert story.restart_seconds == []


def measured(wall_seconds: float, **changed) -> Measured:
    seconds = {"step_seconds": 0.5, "step_seconds_alone": 1.0, "start_seconds": 20.0, "finish_seconds": 4.0}
    own = {"restart_seconds": [10.0, 12.0], "lost": None, "joined": None, "load": 1.0}
    return Measured(wall_seconds=wall_seconds, **{**seconds, **own, **changed})


def test_a_run_that_loses_nothing_is_predicted_by_its_seconds():
    plain = measured(20 + STEPS * 0.5 + 4)
    found = compare(job_of(plain, [11.0]), 0, 1e9, plain)
    assert found["error"] == pytest.approx(0)
    assert found["error_with_own_seconds"] == pytest.approx(0)


def test_a_loss_costs_what_is_counted_by_hand():
    """Lost at the last moment of the third interval: that is done again, after a restart, at half the speed. The other
    node is there after REPAIR_SECONDS, at the next look of 5 s from the restart on, and another restart follows."""
    interval = EVERY * 0.5
    lost = 20 + 3 * interval - 0.001
    looks = 25.0  # seconds of one worker: from the restart, 9 s after the loss, to the look at or after 30 s - 9 s
    kept = int(looks / (2 * interval)) * interval
    left = STEPS * 0.5 - 2 * interval - kept
    by_hand = lost + 9 + looks + 9 + left + 4
    own = measured(by_hand, lost=lost, joined=lost + REPAIR_SECONDS, restart_seconds=[9.0, 9.0])
    found = compare(job_of(measured(0.0), [9.0]), 0, lost, own)
    assert found["predicted_starts"] == 3
    assert found["predicted_seconds"] == pytest.approx(by_hand)
    assert found["error_with_own_seconds"] == pytest.approx(0)

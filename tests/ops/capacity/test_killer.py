"""The killer of the benchmark: whom it kills and when, and how long it takes the run to go on; without processes."""

import signal

import pytest

from ops.benchmarks import killer as killing
from ops.benchmarks.killer import Killer


class World:
    """Workers that are there, a clock, and those that were killed."""

    def __init__(self) -> None:
        self.workers: list[int] = []
        self.seconds = 100.0
        self.killed: list[int] = []

    def kill(self, pid: int, number: int) -> None:
        assert number == signal.SIGKILL
        self.killed.append(pid)


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(killing, "worker_processes", lambda: made.workers)
    monkeypatch.setattr(killing.os, "kill", made.kill)
    monkeypatch.setattr(killing.time, "monotonic", lambda: made.seconds)
    return made


def test_a_kill_waits_for_a_worker_and_spares_the_group_that_is_ending(world):
    killer = Killer(times=[5, 6])
    world.seconds = 106
    killer.look()
    assert world.killed == [], "nobody is there yet"
    world.workers = [1, 2]
    killer.look()
    killer.look()
    assert world.killed == [2], "the second kill is due, but 1 and 2 are ending"
    world.workers, world.seconds = [2, 3, 4], 109
    killer.look()
    killer.look()
    assert world.killed == [2, 4]
    assert killer.killed == [6, 9]


def test_a_kill_by_step_and_the_restart_that_follows(world):
    killer, world.workers = Killer(steps=[30]), [1]
    for step in (None, 29, 30):
        killer.watch({} if step is None else {"step": step}, [])
        killer.look()
    assert killer.killed == [0]
    world.seconds = 103
    killer.watch({"step": 30}, [])  # what the board still has of the group before
    killer.watch({"phase": "building networks"}, [])
    assert killer.restart_seconds == []
    world.seconds = 112
    killer.watch({"step": 21}, [])
    killer.watch({"step": 22}, [])
    assert killer.restart_seconds == [12]


def test_a_start_without_kills_is_no_restart(world):
    killer = Killer()
    killer.watch({}, [])
    killer.watch({"step": 1}, [])
    assert killer.restart_seconds == []

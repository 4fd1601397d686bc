"""A worker is lost in every window of a run: as its group starts, in validation, as the run ends. None ends the run."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, RuntimeEnvSetupError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.poll import WorkerStatus

from cluster.nodes.waiting import Room
from cluster.recipe.reading import parse
from cluster.recipe.run_sections import ScalingConfig
from cluster.tracking.journal import read_journal
from cluster.training import placement
from cluster.training.launch import RunResult, launch
from cluster.training.placement import Placement, RestartableGroup, WatchedPlace, lacks_its_cause
from cluster.training.recovery import ORPHANED
from kdcore.errors import Refused, RunFailed
from tests.cluster.runs import weights
from tests.cluster.training.windows import NUM_STARTS

PLUGIN = """
'''Two workers that die of SIGKILL, each once: rank 1 as it validates, rank 0 when all is written.'''
import os, signal
from pathlib import Path
from cluster.training.recorder import Recorder
from cluster.training.validation import Validation

FOLDER = Path(__file__).parent

def dying(method, rank, word):
    def call(self, *args):
        result = method(self, *args)
        mark = FOLDER / word
        if self.run.rank.number == rank and self.run.rank.world_size > 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

Validation.evaluate = dying(Validation.evaluate, 1, "validated")
Recorder.finish = dying(Recorder.finish, 0, "finished")
"""


class Line:
    """Stands in for a method of an actor."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.say = self

    def remote(self, line: str) -> None:
        self.said.append(line)


class Place:
    """Stands in for a placement group that is never there."""

    def __init__(self) -> None:
        self.is_given_back = False

    def wait(self, seconds: float) -> bool:
        return False

    def shutdown(self) -> None:
        self.is_given_back = True


def placement_of(**scaling: Any) -> Placement:
    made = Placement(ScalingConfig(num_workers=8, **scaling), {"CPU": 1.0}, Line())
    made.after_controller_start(None)
    return made


@pytest.fixture
def no_room(monkeypatch):
    """A cluster of 4 cores on 2 nodes, where patience passes at once."""
    now = [0.0]
    monkeypatch.setattr(Room, "of_cluster", lambda: Room({"CPU": 4.0}, {"CPU": 4.0}, 2))
    monkeypatch.setattr("cluster.nodes.waiting.time.monotonic", lambda: now.__setitem__(0, now[0] + 5) or now[0])
    monkeypatch.setattr(placement.time, "sleep", lambda seconds: None)
    defaults = placement.Patience.wait.__defaults__
    monkeypatch.setattr(placement.Patience.wait, "__defaults__", (Room.of_cluster,))
    yield
    placement.Patience.wait.__defaults__ = defaults


def test_a_fixed_group_waits_as_long_as_patience_lasts(no_room):
    made, place = placement_of(patience_seconds=60), Place()
    with pytest.raises(RunFailed, match=r"waited 60 s for 8 x 1 CPU, and the cluster has 4 CPU on 2 nodes; lower"):
        WatchedPlace(place, made, 8).wait(0)
    assert made.board.said == ["waiting for 8 x 1 CPU (cluster: 4 CPU on 2 nodes), at most 50 s more"]
    assert place.is_given_back


def test_an_elastic_group_is_asked_again(no_room):
    made, place = placement_of(patience_seconds=1000, min_workers=2), Place()
    assert not WatchedPlace(place, made, 8).wait(10)


def test_an_elastic_run_without_its_fewest_workers(no_room):
    """Ray would ask again without end, and without a word."""
    made = placement_of(patience_seconds=30, min_workers=6)
    waiting = ReschedulingState(None)
    for _ in range(6):
        made.after_controller_state_update(waiting, waiting)
    with pytest.raises(RunFailed, match="waited 30 s for 6 x 1 CPU"):
        made.after_controller_state_update(waiting, waiting)
    assert len(made.board.said) == 1


def test_no_waiting_while_it_runs(no_room):
    made = placement_of(patience_seconds=1)
    for _ in range(10):
        made.after_controller_state_update(RunningState(), RunningState())


class Group(RestartableGroup):
    """A group without a cluster, which has not come to have workers."""

    def __init__(self) -> None:
        self._worker_group_state = None
        self._world_rank_to_ongoing_poll = {}
        self._worker_group_context = type("Context", (), {"num_workers": 8, "resources_per_worker": {"CPU": 1.0}})
        self._callbacks = [placement_of()]


def raising(error: Exception, cause: Exception | None = None) -> Any:
    def start(self: Any) -> None:
        raise error from cause

    return start


def test_the_first_cause_is_waited_for(monkeypatch):
    """The rank that was cut off is seen a moment before Ray knows of the death of the other one."""
    cut_off = WorkerStatus(running=False, error=RuntimeError("Connection closed by peer [10.0.0.9]:63113"))
    dead = WorkerStatus(running=False, error=WorkerHealthCheckFailedError("rank 1", failure=LOST))
    away = WorkerHealthCheckFailedError("rank 1", failure=ActorUnavailableError("Connection reset by peer", b"1" * 16))
    unavailable = WorkerStatus(running=False, error=away)
    seen = iter([[cut_off, WorkerStatus(running=True)], [WorkerStatus(running=False), unavailable], [cut_off, dead]])
    monkeypatch.setattr(WorkerGroup, "_poll_workers_and_collect_errors", lambda self, timeout: next(seen))
    monkeypatch.setattr(placement.time, "sleep", lambda seconds: None)
    assert Group()._poll_workers_and_collect_errors(0.1) == [cut_off, dead]


def test_other_errors_are_not_waited_for():
    own, cut_off = ValueError("a bug"), RuntimeError("Connection reset by peer")
    assert lacks_its_cause([cut_off, None])
    assert not any(
        lacks_its_cause(errors) for errors in ([own, None], [cut_off, own], [cut_off, cut_off], [None, None])
    )


LOST = ActorDiedError()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (LOST, None),
        (WorkerGroupStartupFailedError("one failed"), LOST),
        (ray.exceptions.OutOfMemoryError("low on memory"), None),
    ],
)
def test_a_loss_while_a_group_starts_is_a_loss(error, cause, monkeypatch):
    monkeypatch.setattr(WorkerGroup, "_start", raising(error, cause))
    group = Group()
    with pytest.raises(WorkerGroupError) as caught:
        group._start()
    (failure,) = caught.value.worker_failures.values()
    assert failure.health_check_failure is (cause or error)
    assert failure.__notes__ == ["a worker, while the workers started"]
    (line,) = group._placement.board.said
    assert line.startswith("a worker failed: a worker, while the workers started: ")


def test_what_may_be_tried_again_is_said_at_once(tmp_path):
    """Also of a run that then goes on; what ends the run says so itself."""
    made = placement_of()
    made.after_worker_group_poll_status(SimpleNamespace(errors={}))
    made.after_worker_group_poll_status(SimpleNamespace(errors={1: OSError("gone")}))
    made.after_worker_group_poll_status(SimpleNamespace(errors={0: OSError("gone"), 1: Refused("wrong")}))
    assert made.board.said == ["a worker failed: rank 1: gone"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeEnvSetupError("no such package"), "environment could not be made: .*no such package"),
        (
            InsufficientClusterResourcesError("generic"),
            r"8 x 1 CPU is more than the cluster can ever have \(now: 4 CPU",
        ),
        (ray.exceptions.RayError(f"The actor died because {ORPHANED}."), "stopped from outside"),
    ],
)
def test_what_nothing_is_won_by_trying_again(error, said, no_room, monkeypatch):
    monkeypatch.setattr(WorkerGroup, "_start", raising(error))
    with pytest.raises(RunFailed, match=said):
        Group()._start()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_is_killed_in_every_window(ray_cluster, recipe, tmp_path, monkeypatch):
    """Five losses, and one when all is done: the weights of an undisturbed run, and every step logged once."""
    plain = parse(recipe(name="plain", scaling={"num_workers": 2}))
    undisturbed = launch(plain)
    monkeypatch.setenv("RAY_TRAIN_CALLBACKS", "tests.cluster.training.windows.KillWhileStarting")
    plugin = tmp_path / "dying.py"
    plugin.write_text(PLUGIN)
    killed = parse(
        recipe(name="killed", plugins=[str(plugin)], scaling={"num_workers": 2, "max_failures": NUM_STARTS - 1})
    )
    started, heard = time.monotonic(), list[str]()
    result = launch(killed, watch=lambda state, messages: heard.extend(messages))
    print(f"{NUM_STARTS} starts: {time.monotonic() - started:.0f} s, undisturbed {undisturbed.wall_seconds:.0f} s")
    assert sum(line.startswith("a worker failed: ") for line in heard) == NUM_STARTS - 1, heard
    assert {path.name for path in (tmp_path / "validated", tmp_path / "finished") if path.exists()} == {
        "validated",
        "finished",
    }
    first, second = (weights(run) for run in (undisturbed, result))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows(undisturbed) == rows(result)
    assert ray.available_resources()["CPU"] == 4, "no place is kept"


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_finds_no_room(ray_cluster, recipe):
    """8 workers on 4 cores: what it waits for is said after ten seconds, and the end names asked and there."""
    heard: list[str] = []
    config = parse(recipe(name="large", train__micro_batch=1, scaling={"num_workers": 8, "patience_seconds": 13}))
    with pytest.raises(
        RunFailed, match="waited 13 s for 8 x 1 CPU, and the cluster has 4 CPU on 1 node; lower scaling"
    ):
        launch(config, watch=lambda state, messages: heard.extend(messages))
    assert "waiting for 8 x 1 CPU (cluster: 4 CPU on 1 node), at most 3 s more" in heard
    assert ray.available_resources()["CPU"] == 4


def rows(run: RunResult) -> list[tuple[int, float]]:
    found = read_journal(Path(run.run_dir) / "metrics.jsonl")
    return [(row["step"], row[name]) for row in found for name in ("train/loss", "val/top1") if name in row]


@pytest.mark.parametrize("is_dead", [True, False])
def test_no_place_is_made_for_a_driver_that_is_gone(monkeypatch, is_dead):
    """Its workers die before this process does, which would start them again, in a place that nobody gives back."""
    monkeypatch.setattr(placement.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "02000000"))
    others = [{"JobID": "01000000", "IsDead": True}, {"JobID": "03000000", "IsDead": False}]
    monkeypatch.setattr(placement, "jobs", lambda: [*others, {"JobID": "02000000", "IsDead": is_dead}])
    made = []
    monkeypatch.setattr(placement.WorkerGroup, "_create_placement_group", lambda self, *given: made.append(given))
    monkeypatch.setattr(RestartableGroup, "_placement", None)
    group, context = object.__new__(RestartableGroup), SimpleNamespace(num_workers=2)
    with pytest.raises(RunFailed, match=r"^the driver is gone$") if is_dead else nullcontext():
        group._create_placement_group(None, context)
    assert len(made) == (not is_dead)

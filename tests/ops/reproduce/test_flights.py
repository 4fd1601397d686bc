"""Runs side by side share batches and their teacher's answers, and each is as if it were alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from kdcore.configs import ModelConfig
from kdcore.models import build_model
from kdcore.online_teacher import OnlineTeacher
from ops.reproduce.lane import Lane
from ops.reproduce.lanes import flights_of, take_turns
from tests.ops.reproduce.small_lanes import CPU, METHODS, NETWORK, steps


def test_side_by_side_is_one_after_the_other(config):
    """Lanes that take turns do not touch each other; a finished one makes place; what is left is saved."""
    alone = {method: steps(Lane(config(method, f"{method}-a", data__loader="resident"), CPU), 15) for method in METHODS}
    finished: dict[str, Lane] = {}
    lanes = (Lane(config(method, f"{method}-b", data__loader="resident"), CPU) for method in METHODS)
    take_turns(lanes, 2, 300, lambda lane: finished.setdefault(lane.config.name, lane))
    for method, losses in alone.items():
        curve = finished[f"{method}-b"].curve
        means = [np.mean(losses[start : start + 5]) for start in (0, 5, 10)]
        assert [epoch["train_loss"] for epoch in curve] == pytest.approx(means, rel=1e-12)
        assert (finished[f"{method}-b"].folder.path / "step-00000015").is_dir()


def test_one_teacher_answers_for_all(config, monkeypatch):
    """Runs of the same views, one of them shorter and one that asks nothing, as if each were alone."""
    made = {name: {} for name in METHODS} | {"short": {"method": METHODS["dkd"], "train__epochs": 2}}
    alone = {}
    for name, changes in made.items():
        lane = Lane(config(name, f"{name}-alone", data__loader="resident", **changes), CPU)
        alone[name] = steps(lane, lane.run.total_steps)
    lanes = [Lane(config(name, name, data__loader="resident", **changes), CPU) for name, changes in made.items()]
    (flight,) = flights_of(lanes)
    asked, answer = [], OnlineTeacher.__call__
    monkeypatch.setattr(OnlineTeacher, "__call__", lambda self, batch: asked.append(batch) or answer(self, batch))
    losses: dict[str, list[float]] = {name: [] for name in made}
    while flight.lanes:
        for lane, loss in zip(flight.lanes, flight.step(), strict=True):
            losses[lane.config.name].append(float(loss))
        flight.lanes = [lane for lane in flight.lanes if not lane.done]
    assert losses == alone
    assert [len(values) for values in losses.values()] == [15, 15, 15, 15, 10]
    assert len(asked) == 15


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"views__mixup_alpha": 0.2},
        {"views__num_views": 2},
        {"train__batch_size": 2},
        {"train__precision": "bfloat16"},
        {"train__channels_last": False},
        {"data__mean": (0.5, 0.5, 0.5), "data__std": (0.25, 0.25, 0.25)},
        {"data__held_out": 0.25},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_batches_are_another_flight(other, config):
    lanes = [Lane(config("simkd", f"run{i}", data__loader="resident", **c), CPU) for i, c in enumerate(({}, {}, other))]
    assert [len(flight.lanes) for flight in flights_of(lanes)] == [2, 1]


def test_another_step_is_another_flight(config):
    lanes = [Lane(config("simkd", f"run{i}", data__loader="resident"), CPU) for i in range(3)]
    steps(lanes[1], 1)
    assert [flight.lanes for flight in flights_of(lanes)] == [[lanes[0], lanes[2]], [lanes[1]]]


def test_each_lane_has_the_answers_of_its_own_teacher(config, teacher, tmp_path):
    torch.manual_seed(6)
    another = str(tmp_path / "another.safetensors")
    safetensors.torch.save_file(build_model(ModelConfig(**NETWORK), ("a", "b")).state_dict(), another)
    made = {name: {"teacher": NETWORK | {"checkpoint": path}} for name, path in (("one", teacher), ("two", another))}
    alone = [steps(Lane(config("dkd", f"{name}-a", data__loader="resident", **c), CPU), 7) for name, c in made.items()]
    lanes = [Lane(config("dkd", name, data__loader="resident", **changes), CPU) for name, changes in made.items()]
    (flight,) = flights_of(lanes)
    assert [list(map(float, both)) for both in zip(*[flight.step() for _ in range(7)], strict=True)] == alone
    assert alone[0] != alone[1]


def test_stopped_before_its_result(config):
    """Beside a longer run that has taken as many steps, and goes on."""
    made = {"short": {"train__epochs": 2}, "long": {}}
    for name, changes in made.items():
        lane = Lane(config("simkd", name, data__loader="resident", **changes), CPU)
        steps(lane, 10)
        lane.save()
    finished: dict[str, int] = {}
    lanes = (Lane(config("simkd", name, data__loader="resident", **changes), CPU) for name, changes in made.items())
    take_turns(lanes, 2, 300, lambda lane: finished.setdefault(lane.config.name, lane.state.step))
    assert finished == {"short": 10, "long": 15}


def test_time_is_over_before_the_first_step(config):
    take_turns(iter([Lane(config("simkd", "late", data__loader="resident"), CPU)]), 1, 0.0, pytest.fail)


def test_a_run_that_diverges_leaves_the_others_alone(config):
    """It says in its folder where and why; what it has learnt before is not saved over."""
    alone = steps(Lane(config("alone", "alone", data__loader="resident"), CPU), 15)
    lanes = [Lane(config("alone", name, data__loader="resident"), CPU) for name in ("good", "bad")]
    lanes[1].state.optimizer.param_groups[0]["lr"] = lanes[1].loop.schedule._scheduler.base_values[0] = 1e30
    finished: dict[str, Lane] = {}
    take_turns(iter(lanes), 2, 300, lambda lane: finished.setdefault(lane.config.name, lane))
    assert list(finished) == ["good"]
    assert finished["good"].curve[-1]["train_loss"] == pytest.approx(np.mean(alone[10:]), rel=1e-12)
    failed = json.loads((lanes[1].folder.path / "failed.json").read_text())
    assert "not finite" in failed["error"]
    assert not list(lanes[1].folder.path.glob("step-*"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_of_one_flight_do_not_overtake_each_other(config):
    """Three runs read one batch and one graph's answers, each on its own stream."""
    cuda = torch.device("cuda")
    alone = [steps(Lane(config(method, f"{method}-a", data__loader="resident"), cuda), 15) for method in METHODS]
    (flight,) = flights_of([Lane(config(method, method, data__loader="resident"), cuda) for method in METHODS])
    together = zip(*[[float(loss) for loss in flight.step()] for _ in range(15)], strict=True)
    assert all(teacher.graph is not None for teacher in flight.teachers.values())
    for one, other in zip(together, alone, strict=True):
        assert list(one) == pytest.approx(other, rel=1e-4)

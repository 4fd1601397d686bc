"""What interrupts a run between two steps: asked of one rank, answered by all of them after the same step."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch
import torch.distributed as dist
from ray.train import PreemptionInfo

from cluster.rank import LargestOfRanks, Rank
from cluster.recipe.reading import parse
from cluster.training import notices
from cluster.training.launch import launch
from cluster.training.notices import Answer, Notices
from cluster.training.progress import Reporter
from cluster.training.saving import LocalSaver
from tests.processes import run_ranks

ALONE = Rank(0, 1, torch.device("cpu"))
FIRST = PreemptionInfo(deadline_ms=1_767_225_600_000, preempted_node_to_ranks={"a1b2c3d4e5": [1, 0], "b": [2]})
LATER = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a1b2c3d4e5": [0, 1]})


def follow(number: int, folder: str, results: Any) -> None:
    """One of two ranks: of the numbers that both give, what each is told call by call."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    largest = LargestOfRanks(Rank(number, 2, torch.device("cpu")))
    given = [[0, 1, 0, 2], [0, 0, 0, 0]][number]
    results[number] = [largest.exchange(value) for value in given] + [largest.finish()]
    dist.destroy_process_group()


def test_two_ranks_are_told_the_same_one_call_later(tmp_path: Path) -> None:
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        run_ranks(follow, str(tmp_path), results)
        assert dict(results) == {0: [0, 0, 1, 0, 2], 1: [0, 0, 1, 0, 2]}


def test_one_rank_is_told_at_once() -> None:
    stop = threading.Event()
    asked = Notices(ALONE, stop, watches_nodes=False)
    assert asked.after_step() == Answer()
    stop.set()
    assert asked.after_step() == Answer(ends=True)
    asked.close()


def test_each_notice_of_ray_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([None, FIRST, FIRST, LATER])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(found))
    monkeypatch.setattr(notices, "LOOK_SECONDS", 0.0)
    asked = Notices(ALONE, threading.Event(), watches_nodes=True)
    said = [asked.after_step().notice for _ in range(4)]
    assert said == [
        None,
        "node a1b2c3d4, b with rank 0, 1, 2 is taken away at 00:00:00 UTC",
        None,
        "node a1b2c3d4 with rank 0, 1 is taken away soon",
    ]


def test_ray_is_asked_every_so_often_and_where_it_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is a barrier of all ranks, which a step does not wait for."""
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: pytest.fail("asked"))
    Notices(ALONE, threading.Event(), watches_nodes=True).after_step()
    monkeypatch.setattr(notices, "LOOK_SECONDS", 0.0)
    Notices(ALONE, threading.Event(), watches_nodes=False).after_step()


def test_a_run_that_is_to_end_asks_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: pytest.fail("asked"))
    monkeypatch.setattr(notices, "LOOK_SECONDS", 0.0)
    stop = threading.Event()
    stop.set()
    assert Notices(ALONE, stop, watches_nodes=True).after_step().ends


def test_a_checkpoint_is_written_before_that_is_said(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train writes beside the training: a node may be gone before it is done."""
    answers, done = iter([Answer(notice="node a is taken away soon")]), []
    monkeypatch.setattr(Notices, "after_step", lambda self: next(answers, Answer()))
    monkeypatch.setattr(LocalSaver, "finish", lambda self: done.append("written"))
    monkeypatch.setattr(Reporter, "say", lambda self, text: done.append(text))
    launch(parse(recipe(scaling__num_workers=0, train__max_steps=2, data__loader="reference")))
    said = done.index("node a is taken away soon: a checkpoint of step 1 is written")
    assert done[said - 1] == "written"

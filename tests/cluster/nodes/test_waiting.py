"""Waiting for room: silent at first, then a line for each state of the cluster; the end says what there was."""

import pytest

from cluster.nodes import waiting
from cluster.nodes.waiting import Patience, Room, remedy_for, request_in_words
from kdcore.errors import RunFailed

EACH = {"CPU": 1.0}


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def room(total, free, nodes):
    return Room({"CPU": total}, {"CPU": free}, nodes)


def test_words():
    assert request_in_words(8, {"CPU": 1, "GPU": 0}) == "8 x 1 CPU"
    assert request_in_words(2, {"CPU": 12, "GPU": 0.5}) == "2 x (12 CPU, 0.5 GPU)"
    assert room(4, 4, 2).in_words(EACH) == "4 CPU on 2 nodes"
    assert room(4, 1, 1).in_words(EACH) == "4 CPU on 1 node; free: 1 CPU"
    assert Room({}, {}, 0).in_words({"CPU": 1, "GPU": 1}) == "0 CPU, 0 GPU on 0 nodes"
    assert "scaling.min_workers" in remedy_for(8, None)
    assert "scaling.min_workers" not in remedy_for(8, 2) + remedy_for(1, None)


def test_a_line_after_ten_seconds_and_at_every_change(clock):
    said = []
    patience = Patience(60, said.append, "raise scaling.patience_seconds")
    for second, now in enumerate([room(4, 4, 2)] * 30 + [room(6, 6, 3)] * 20):
        clock[0] = 100.0 + second
        patience.wait("8 x 1 CPU", EACH, lambda now=now: now)
    assert said == [
        "waiting for 8 x 1 CPU (cluster: 4 CPU on 2 nodes), at most 50 s more",
        "waiting for 8 x 1 CPU (cluster: 6 CPU on 3 nodes), at most 30 s more",
    ]
    clock[0] = 160.0
    with pytest.raises(RunFailed, match=r"^waited 60 s for 8 x 1 CPU, and the cluster has 6 CPU on 3 nodes; raise"):
        patience.wait("8 x 1 CPU", EACH, lambda: room(6, 6, 3))


def test_patience_begins_anew_when_there_was_room(clock):
    patience = Patience(20, pytest.fail, "")
    for _ in range(3):
        patience.wait("1 x 1 CPU", EACH, pytest.fail)
        clock[0] += 9
        patience.wait("1 x 1 CPU", EACH, pytest.fail)
        clock[0] += 9
        patience.end()


def test_a_short_patience_needs_no_line(clock):
    patience = Patience(3, pytest.fail, "")
    patience.wait("1 x 1 CPU", EACH)
    clock[0] += 3
    with pytest.raises(RunFailed, match="waited 3 s"):
        patience.wait("1 x 1 CPU", EACH, lambda: room(0, 0, 0))

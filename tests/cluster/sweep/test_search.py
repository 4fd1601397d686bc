"""A sweep cut off anywhere ends as if it had not been: the points, their order, and what was decided."""

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import SweepJournal, Trial
from cluster.sweep.run import retry_trials
from cluster.sweep.scheduler import EarlyStopping
from cluster.sweep.search import Proposals
from cluster.sweep.space import build_space
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import sweep

SEARCHES = {
    "grid": {"space": {"temperature": [1, 2, 4], "optimizer.lr": [0.1, -1, 0.3]}, "stop": {"rule": "asha"}},
    "random": {"space": {"weight": {"uniform": [0, 1]}}, "search": "random", "num_points": 9, "stop": {"rule": "asha"}},
    "the median rule": {
        "space": {"temperature": [1, 2, 4], "optimizer.lr": [0.1, 0.2, 0.3]},
        "stop": {"rule": "median", "grace_epochs": 2},
    },
    "tpe": {"space": {"weight": {"uniform": [0, 1]}, "temperature": [1, 2, 4]}, "search": "tpe", "num_points": 15},
    "tpe with asha": {
        "space": {"weight": {"log_uniform": [0.1, 10]}},
        "search": "tpe",
        "num_points": 14,
        "seeds": [0, 1],
        "stop": {"rule": "asha", "grace_epochs": 2, "reduction_factor": 2},
    },
}


class Tune:
    """Stands in for Tune: asks for trials, trains them step by step, in an order of its own, and reports.

    A run's score is a function of its point, seed and epoch alone. stop_after: events in the journal, then the kill.
    """

    def __init__(self, path: Path, config: SweepConfig, concurrent: int = 1, stop_after: int | None = None) -> None:
        self.config, self.concurrent, self.stop_after = config, concurrent, stop_after
        self.journal = SweepJournal(path)
        self.events = 0
        self.proposals = Proposals(build_space(config, None), self.journal, self.score, self.payload, lambda trial: {})
        self.stopping = EarlyStopping(config, self.journal)
        self.journal.open()
        self.journal.listen(self.count)

    def count(self, event: Any, trial: Trial) -> None:
        self.events += 1
        if self.events == self.stop_after:
            raise KeyboardInterrupt

    def score(self, trial: Trial) -> float | None:
        return trial.score(self.config.metric, selects_best=False)

    def payload(self, trial: Trial) -> dict[str, Any]:
        if trial.point.get("optimizer.lr", 0) < 0:
            raise Refused("a negative learning rate")
        return {"name": trial.name}

    def run(self) -> dict[str, tuple]:
        """{trial: what became of it} at the end."""
        running: list[tuple[str, Any, Iterator]] = []
        ids = map("tune{}".format, itertools.count())
        turns = itertools.count()
        while self.fill(running, ids):
            self.step(running, next(turns) % len(running))
        return {t.name: (t.point, t.seed, t.end, t.reason, t.reports) for t in self.journal.trials.values()}

    def fill(self, running: list[tuple[str, Any, Iterator]], ids: Iterator[str]) -> bool:
        """Asks for as many trials as may run; whether any does."""
        while len(running) < self.concurrent:
            tune_id = next(ids)
            payload = self.proposals.suggest(tune_id)
            if payload == Searcher.FINISHED:
                break
            trial = self.journal.trials[payload["name"]]
            running.append((tune_id, trial, rows(trial)))
        return bool(running)

    def step(self, running: list[tuple[str, Any, Iterator]], place: int) -> None:
        tune_id, trial, reports = running[place]
        row = next(reports, None)
        stand_in = SimpleNamespace(config={"name": trial.name}, trial_id=tune_id)
        if row is None or self.stopping.on_trial_result(None, stand_in, row | {"time_total_s": 1.0}) == "STOP":
            self.proposals.on_trial_complete(tune_id, row)
            del running[place]


def rows(trial: Trial) -> Iterator[dict[str, Any]]:
    """Yield the reports of a run, from its beginning, also where it is continued."""
    for epoch in range(1, 10):
        goodness = sum(zlib.crc32(f"{name} {value:.6f}".encode()) % 97 for name, value in trial.point.items()) / 97
        yield {"epoch": epoch, "step": 4 * epoch, "last": epoch == 9, "held_out/top1": epoch * (goodness + trial.seed)}


@pytest.mark.parametrize("search", SEARCHES)
def test_cut_off_anywhere_it_ends_the_same(search, tmp_path):
    """One run at a time: killed after any event, also twice, the table is that of an undisturbed sweep."""
    config = sweep(**SEARCHES[search])
    whole = Tune(tmp_path / "whole", config)
    expected = whole.run()
    ends = [end for _, _, end, _, _ in expected.values()]
    assert ends.count("finished") >= 1
    assert ends.count("stopped") >= 2 or not config.stop
    assert ends.count("failed") == (3 if search == "grid" else 0)
    for cut in range(1, whole.events - 5, 7):
        path = tmp_path / f"cut{cut}"
        for stop_after in (cut, 5):
            with pytest.raises(KeyboardInterrupt):
                Tune(path, config, stop_after=stop_after).run()
        path.write_bytes(path.read_bytes() + b'{"event": "rep')  # a line that was cut off
        assert Tune(path, config).run() == expected, cut


@pytest.mark.parametrize(("search", "cut"), [("grid", 20), ("the median rule", 40), ("tpe with asha", 20)])
def test_what_was_decided_stays_decided(search, cut, tmp_path):
    """Several runs at a time: after a kill no trial that had ended is touched, and none is lost or run twice."""
    config = sweep(**SEARCHES[search])
    with pytest.raises(KeyboardInterrupt):
        Tune(tmp_path / "j", config, concurrent=3, stop_after=cut).run()
    before = SweepJournal(tmp_path / "j")
    before.open()
    ended = {t.name: (t.point, t.seed, t.end, t.reason, t.reports) for t in before.trials.values() if t.end}
    after = Tune(tmp_path / "j", config, concurrent=3).run()
    assert ended
    assert {name: after[name] for name in ended} == ended
    assert len(after) == (28 if search == "tpe with asha" else 9)
    for _, _, end, _, reports in after.values():
        steps = [row["step"] for row in reports]
        assert steps == list(range(4, 4 * len(steps) + 4, 4))
        assert end != "finished" or len(steps) == 9


def test_seeds_are_added(tmp_path):
    """To a grid that has ended: its runs stay as they are, and all is as if the seeds had been given at once."""
    space = {"weight": [0.1, 0.2, 0.3]}
    first = Tune(tmp_path / "j", sweep(space=space, seeds=[0])).run()
    after = Tune(tmp_path / "j", sweep(space=space, seeds=[0, 1])).run()
    assert list(after)[:3] == list(first)
    assert after == Tune(tmp_path / "whole", sweep(space=space, seeds=[0, 1])).run()


def test_what_was_lost_is_tried_again(tmp_path):
    """By the same command; what failed by itself only where that was asked for. Then all is as if nothing had been."""
    config = sweep(space={"weight": [0.1, 0.2, 0.3]}, seeds=[0, 1])
    expected = Tune(tmp_path / "whole", config).run()
    errors = {"000-seed0": {"error": "its node was lost", "is_lost": True}, "001-seed1": {"error": "ValueError: a bug"}}
    first = Tune(tmp_path / "j", config)
    complete = first.proposals.on_trial_complete
    first.proposals.on_trial_complete = lambda tune_id, row: complete(
        tune_id, errors.get(first.proposals.names[tune_id])
    )
    first.run()
    ends = {name: (trial.end, trial.reason) for name, trial in first.journal.trials.items()}
    assert ends["000-seed0"] == ("lost", "its node was lost")
    assert ends["001-seed1"] == ("failed", "ValueError: a bug")
    assert [end for end, _ in ends.values()].count("finished") == 4
    second = Tune(tmp_path / "j", config)
    retry_trials(second.journal, retry_failed=False)
    assert {name for name, found in second.run().items() if found != expected[name]} == {"001-seed1"}
    third = Tune(tmp_path / "j", config)
    retry_trials(third.journal, retry_failed=True)
    assert third.run() == expected
    assert not Tune(tmp_path / "j", config).proposals.has_more


def test_tpe_waits_for_a_lost_run(tmp_path):
    """A lost run says nothing of its point."""
    tune = Tune(tmp_path / "j", sweep(space={"weight": {"uniform": [0, 1]}}, search="tpe", num_points=2))
    told = []
    tune.proposals.source.tell = lambda number, score: told.append(number)
    tune.journal.begin("000-seed0", 0, tune.proposals._point(0), 0)
    tune.journal.end("000-seed0", "lost", "its node was lost")
    assert told == []
    tune.journal.retry("000-seed0")
    tune.journal.end("000-seed0", "failed", "a bug")
    assert told == [0]


def test_tpe_hears_the_mean_over_seeds(tmp_path):
    """And only when every seed of a point has ended."""
    config = sweep(space={"weight": {"uniform": [0, 1]}}, search="tpe", num_points=2, seeds=[0, 1])
    tune = Tune(tmp_path / "j", config)
    told = []
    tune.proposals.source.tell = lambda number, score: told.append((number, score))
    tune.run()
    trials = list(tune.journal.trials.values())
    means = [sum(t.reports[-1]["held_out/top1"] for t in trials[i : i + 2]) / 2 for i in (0, 2)]
    assert told == [(0, pytest.approx(means[0])), (1, pytest.approx(means[1]))]


def test_a_search_that_has_changed_is_noticed(tmp_path):
    """A journal whose points the search would not give now."""
    config = sweep(**SEARCHES["tpe"])
    Tune(tmp_path / "j", config).run()
    with pytest.raises(Refused, match=r"point 0 of this sweep was .*, and the search now gives"):
        Tune(tmp_path / "j", config.model_copy(update={"seed": 1}))

"""The stopping rules against Ray Tune's own, and where they differ from those, by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from cluster.sweep.stoppers import REGISTRY, Report, Stopper, parse_stopper
from cluster.sweep.stoppers.asha import Asha
from cluster.sweep.stoppers.median import Median
from kdcore.errors import Refused
from tests.cluster.sweep.conftest import sweep


def curve(*scores: float, first: float = 1) -> list[Report]:
    """Return a run that reports after every epoch."""
    return [Report(first + number, score) for number, score in enumerate(scores)]


def decisions(rule, reference, mode: str, seed: int, num_runs: int = 24, epochs: int = 9) -> list[tuple[bool, bool]]:
    """Return (what the rule decides, what Ray's scheduler does) at every report of runs trained at the same time."""
    rng = np.random.default_rng(seed)
    goodness = rng.normal(size=num_runs)
    trials = [TuneTrial(number) for number in range(num_runs)]
    curves: list[list[Report]] = [[] for _ in trials]
    running, found = list(range(num_runs)), []
    for trial in trials:
        reference.on_trial_add(None, trial)
    while running:
        number = int(rng.choice(running))
        epoch = len(curves[number]) + 1
        score = float(goodness[number] * epoch + rng.normal())
        curves[number].append(Report(epoch, score))
        result = {"epoch": epoch, "score": score}
        stop = bool(rule.reason(curves[number], curves[:number] + curves[number + 1 :], mode))
        found.append((stop, reference.on_trial_result(None, trials[number], result) == "STOP"))
        if stop or epoch == epochs:
            running.remove(number)
    return found


class TuneTrial(SimpleNamespace):
    """What Ray's schedulers read of a trial, which is also a key of their dictionaries."""

    def __init__(self, number: int) -> None:
        super().__init__(trial_id=f"trial{number}")

    def __hash__(self) -> int:
        return hash(self.trial_id)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("grace", "factor"), [(1, 3), (2, 2), (1, 4)])
def test_asha_decides_as_rays_does(mode, grace, factor):
    for seed in range(5):
        reference = ASHAScheduler(
            time_attr="epoch", metric="score", mode=mode, max_t=99, grace_period=grace, reduction_factor=factor
        )
        rule = Asha(grace_epochs=grace, reduction_factor=factor)
        found = decisions(rule, reference, mode, seed)
        assert all(ours == theirs for ours, theirs in found)
        assert sum(stop for stop, _ in found) > 3


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(("grace", "min_runs"), [(1, 3), (3, 1), (2, 8)])
def test_the_median_rule_decides_as_rays_does(mode, grace, min_runs):
    for seed in range(5):
        reference = MedianStoppingRule(
            time_attr="epoch",
            metric="score",
            mode=mode,
            grace_period=grace,
            min_samples_required=min_runs,
            min_time_slice=math.inf,
        )
        rule = Median(grace_epochs=grace, min_runs=min_runs)
        found = decisions(rule, reference, mode, seed)
        assert all(ours == theirs for ours, theirs in found)
        assert sum(stop for stop, _ in found) > 3


def test_rungs():
    asha = Asha(grace_epochs=2, reduction_factor=3)
    assert [asha.rung(epoch) for epoch in (1, 2, 5.5, 6, 17, 18)] == [0, 2, 2, 6, 6, 18]


def test_asha_compares_once_a_rung():
    """The first report there decides, and nothing that comes between two rungs.

    A run that has left a rung out, as it validates more rarely, is not compared with those that were on it.
    """
    asha = Asha(grace_epochs=1, reduction_factor=2)
    others = [curve(0.5, 0.6, 0.7, 0.8)] * 3
    assert asha.reason(curve(0.4), others, "max") == (
        "3 of the 3 runs that came to rung 1 before it are better, and the best 1/2 go on"
    )
    assert asha.reason(curve(0.6, 0.7, 0.0), others, "max") == ""
    assert asha.reason(curve(0.6, 0.7, 0.8, 0.1), others, "max") != ""
    assert asha.reason(curve(0.4), [curve(0.9, first=4)], "max") == ""
    assert asha.reason(curve(0.4), [], "max") == ""


def test_the_median_rule_by_hand():
    """Three others with running averages 1, 2 and 3 at epoch 2, the last of which has not come to epoch 3."""
    others = [curve(0, 2, 9), curve(1, 3, 9), curve(2, 4)]
    median = Median()
    assert median.reason(curve(1.75, 0), others, "max") == (
        "its best, 1.75, is worse than 2.0, the median of the running averages of the 3 other runs that have come "
        "as far"
    )
    assert median.reason(curve(2, 0), others, "max") == ""
    assert median.reason(curve(0, 0, 0), others, "max") == ""  # only two others are there
    assert Median(grace_epochs=3).reason(curve(0, 0), others, "max") == ""
    assert median.reason(curve(4, 2.25), others, "min") != ""
    assert median.reason(curve(4, 2), others, "min") == ""


@pytest.mark.parametrize("rule", [Asha(), Median()])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_no_number_is_the_worst(rule, mode):
    """It stops its own run, and decides about no other."""
    assert "nan" in rule.reason(curve(math.nan), [curve(1.0)] * 3, mode) or isinstance(rule, Asha)
    assert rule.reason(curve(math.nan), [curve(1.0)] * 3, mode) != ""
    assert rule.reason(curve(1.0), [curve(math.nan)] * 3, mode) == ""
    assert rule.reason(curve(1.0), [curve(1.0), curve(1.0), curve(1.0), curve(math.nan)], mode) == ""


@pytest.mark.parametrize("name", REGISTRY)
def test_every_rule_can_be_asked(name):
    """SPACE.yaml names it, the plan describes it, a first run goes on, and a grace period of a whole run is refused."""
    rule = sweep(stop={"rule": name, "grace_epochs": 2}).stop
    assert type(rule) is REGISTRY[name]
    assert rule.summary()
    assert rule.reason(curve(0.1), [], "max") == ""
    rule.check(3)
    with pytest.raises(Refused, match=r"stop.grace_epochs 2 leaves nothing to stop in runs of 2 epochs"):
        rule.check(2)


def test_a_new_rule_is_one_class():
    class Never(Stopper):
        rule: str = "never"
        patience: int = 3

    try:
        assert sweep(stop={"rule": "never", "patience": 4}).stop == Never(patience=4)
        with pytest.raises(Refused, match=r"unknown key 'stop.impatience'"):
            sweep(stop={"rule": "never", "impatience": 4})
    finally:
        del REGISTRY["never"]


def test_what_is_no_rule():
    for given, message in {
        "asha": r"a stopping rule is a mapping with a 'rule' key, such as \{rule: asha\}; got 'asha'",
        "meridian": "unknown stopping rule 'meridian'; did you mean median",
    }.items():
        with pytest.raises(Refused, match=message):
            parse_stopper(given if given == "asha" else {"rule": given})

"""What Tune hears after a report, and what the journal says of it."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.sweep.journal import SweepJournal
from cluster.sweep.scheduler import EarlyStopping
from cluster.sweep.trial import RunValidations, validations
from tests.cluster.sweep.conftest import sweep

NLL = "held_out/nll"


def opened(path: Path, **stop: Any) -> EarlyStopping:
    """Return a scheduler with the journal that lies at a path."""
    scheduler = EarlyStopping(sweep(stop=stop), SweepJournal(path))
    scheduler.journal.open()
    return scheduler


def report(scheduler: EarlyStopping, name: str, epoch: float, score: float, last: bool = False) -> str:
    """Return Tune's word after a report of a trial, which begins with its first one."""
    if name not in scheduler.journal.trials:
        scheduler.journal.begin(name, len(scheduler.journal.trials), {"temperature": 1}, 0)
    row = {"epoch": epoch, "step": int(4 * epoch), "last": last, "held_out/top1": score, "time_total_s": 1.0}
    return scheduler.on_trial_result(None, SimpleNamespace(config={"name": name}), row)


def test_why_a_run_was_stopped(tmp_path):
    """Successive halving by hand: at epoch 1 the third run is worse than both others, and only the best half go on."""
    scheduler = opened(tmp_path / "j", rule="asha", reduction_factor=2)
    words = [report(scheduler, f"{number}", 1, score) for number, score in enumerate((0.5, 0.7, 0.4))]
    assert words == ["CONTINUE", "CONTINUE", "STOP"]
    trial = scheduler.journal.trials["2"]
    assert (trial.end, trial.reason) == (
        "stopped",
        "stopped by asha at epoch 1: held_out/top1 40.00%; 2 of the 2 runs that came to rung 1 before it are better, "
        "and the best 1/2 go on",
    )
    assert trial.reports == [{"epoch": 1, "step": 4, "last": False, "held_out/top1": 0.4}]


def test_a_reason_shows_rates_in_percent(tmp_path):
    scheduler = opened(tmp_path / "j", rule="median", min_runs=2)
    for name, score in (("0", 0.5), ("1", 0.7), ("2", 0.4)):
        report(scheduler, name, 1, score)
    assert scheduler.journal.trials["2"].reason == (
        "stopped by median at epoch 1: held_out/top1 40.00%; its best, 40.00%, is worse than 60.00%, the median of the "
        "running averages of the 2 other runs that have come as far"
    )


def test_the_last_report_stops_nothing_and_is_compared_with_nothing(tmp_path):
    """Its run is at its end, and its learning rate has come down as that of others in the midst of theirs has not."""
    scheduler = opened(tmp_path / "j", rule="asha", reduction_factor=2)
    report(scheduler, "0", 1, 0.5)
    assert report(scheduler, "0", 2, 0.9, last=True) == "CONTINUE"
    assert report(scheduler, "1", 2, 0.1, last=True) == "CONTINUE"
    assert report(scheduler, "2", 2, 0.3) == "CONTINUE"  # nobody else has come to rung 2 on the way
    assert report(scheduler, "3", 2, 0.2) == "STOP"


def test_after_a_restart_reports_that_are_known_decide_nothing(tmp_path):
    """A trial that is continued repeats what the journal has; what is new is judged by all that the journal has."""
    before = opened(tmp_path / "j", rule="median", min_runs=2)
    for name, score in (("0", 0.5), ("1", 0.7)):
        report(before, name, 1, score)
    assert report(before, "2", 1, 0.6) == "CONTINUE"
    before.journal.file.close()
    after = opened(tmp_path / "j", rule="median", min_runs=2)
    assert report(after, "2", 1, 0.0) == "CONTINUE"
    assert [row["held_out/top1"] for row in after.journal.trials["2"].reports] == [0.6]
    assert report(after, "3", 1, 0.1) == "STOP"


def test_without_a_rule_every_run_goes_on(tmp_path):
    scheduler = EarlyStopping(sweep(), SweepJournal(tmp_path / "j"))
    scheduler.journal.open()
    assert [report(scheduler, f"{number}", 1, -float(number)) for number in range(5)] == ["CONTINUE"] * 5


@pytest.mark.parametrize("stop", [{"rule": "asha"}, {"rule": "median", "min_runs": 1}])
def test_a_validation_that_is_no_number(stop, tmp_path):
    """The run's file has null for it, and the sweep's journal too: it ends its own run, which has no score."""
    scheduler = EarlyStopping(sweep(metric=NLL, stop=stop), SweepJournal(tmp_path / "j"))
    scheduler.journal.open()
    words = [report_file(scheduler, tmp_path, name, losses) for name, losses in (("0", "2.0"), ("1", "null"))]
    assert words == ["CONTINUE", "STOP"]
    assert report_file(scheduler, tmp_path, "2", "1.0") == "CONTINUE"
    assert f"{NLL} nan" in scheduler.journal.trials["1"].reason
    for line in (tmp_path / "j").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    again = SweepJournal(tmp_path / "j")
    again.open()
    assert again.trials == scheduler.journal.trials
    assert math.isnan(again.trials["1"].reports[-1][NLL])
    for selects_best in (False, True):
        assert [trial.score(NLL, selects_best) for trial in again.trials.values()] == [2.0, None, 1.0]


def report_file(scheduler: EarlyStopping, folder: Path, name: str, loss: str) -> str:
    """Return Tune's word after the validation in a run's own file. loss: as it stands there."""
    path = folder / f"{name}.jsonl"
    path.write_text(f'{{"step": 10, "time": 1.0, "held_out/top1": 0.1, "{NLL}": {loss}}}\n')
    scheduler.journal.begin(name, int(name), {"temperature": 1}, 0)
    (row,) = validations(RunValidations(str(path), 10, 90, "held_out", 2, 1))
    return scheduler.on_trial_result(None, SimpleNamespace(config={"name": name}), row)

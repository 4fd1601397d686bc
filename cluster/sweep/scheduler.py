"""What Ray Tune asks after every report of a trial: whether it goes on. The sweep's stopping rule answers.

The answer is a function of the journal, and is in the journal before Tune gets it: what was decided stays decided.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cluster.score_text import score_text
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import SweepJournal, Trial
from cluster.sweep.search import AskedByTune
from cluster.sweep.stoppers import Report


class EarlyStopping(AskedByTune, FIFOScheduler):
    """Asks the sweep's rule, if it has one, on every report, and writes report and answer into the journal.

    A report that is there already, of a trial that is being continued, changes nothing.
    """

    def __init__(self, sweep: SweepConfig, journal: SweepJournal) -> None:
        super().__init__()
        self.sweep, self.journal = sweep, journal

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return Tune's constant for whether the trial goes on."""
        name, row = trial.config["name"], row_of(result)
        if "step" not in row or any(row["step"] == known["step"] for known in self.journal.trials[name].reports):
            return TrialScheduler.CONTINUE
        with self.keeping_refusal():
            reason = self.reason(name, row)
            self.journal.report(name, row, reason)
        return TrialScheduler.STOP if reason else TrialScheduler.CONTINUE

    def reason(self, name: str, row: dict[str, Any]) -> str:
        """Return why a trial ends with a report; empty where it goes on.

        A run's last report ends nothing: stopping there would save nothing.
        """
        if self.sweep.stop is None or row["last"]:
            return ""
        trials = self.journal.trials
        run = [*self.curve(trials[name]), self.report(row)]
        others = [self.curve(other) for other in trials.values() if other.name != name]
        write = partial(score_text, self.sweep.metric)
        why = self.sweep.stop.reason(run, others, self.sweep.mode, write)
        score = f"{self.sweep.metric} {write(row[self.sweep.metric])}"
        return f"stopped by {self.sweep.stop.rule} at epoch {row['epoch']:g}: {score}; {why}" if why else ""

    def curve(self, trial: Trial) -> list[Report]:
        """Return the scores of a trial so far, without the one at its end."""
        return [self.report(row) for row in trial.reports if not row["last"]]

    def report(self, row: dict[str, Any]) -> Report:
        """Return the part of a validation that a rule reads."""
        return Report(row["epoch"], row[self.sweep.metric])


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return a trial's report without what Tune has added to it."""
    own = ("epoch", "step", "last")
    return {key: value for key, value in result.items() if key in own or key.startswith(("held_out/", "val/"))}

"""What a person sees while a sweep runs: a live table on a terminal, a line for every event elsewhere."""

from __future__ import annotations

from typing import Any

from rich.live import Live
from rich.table import Table

from cluster.score_text import score_text
from cluster.sweep.journal import Event, SweepJournal, Trial
from cluster.sweep.plan import SweepPlan
from cluster.sweep.space import describe
from ops.console import View, console, say, table

ROWS = 20  # of the live table: the runs under way, and those that ended last


class SweepView(View):
    """Watches a sweep: call it with (journal, event, trial) whenever something has happened."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan, self.live = plan, Live(console=console, auto_refresh=False)
        super().__init__(self.live)

    def __call__(self, journal: SweepJournal, event: Event, trial: Trial) -> None:
        if self.is_live:
            self.live.update(self.table(list(journal.trials.values())), refresh=True)
        else:
            say(self.line(event, trial))

    def line(self, event: Event, trial: Trial) -> str:
        """Return an event in words."""
        if event["event"] == "begin":
            return f"{trial.name}: started, {describe(trial.point)}, seed {trial.seed}"
        if event["event"] == "report" and not trial.end:
            return f"{trial.name}: epoch {trial.epoch:g}, {self.plan.sweep.metric} {self.shown(trial)}"
        if event["event"] == "retry":
            return f"{trial.name}: retried from its last checkpoint"
        if trial.end == "finished":
            return f"{trial.name}: finished, {self.plan.sweep.metric} {self.shown(trial)}"
        return f"{trial.name}: {'' if trial.end == 'stopped' else f'{trial.end}, '}{trial.reason}"

    def table(self, trials: list[Trial]) -> Table:
        """Return a table of the runs under way, and of those that ended last."""
        ends = [trial.end or "under way" for trial in trials]
        counts = ", ".join(f"{ends.count(end)} {end}" for end in ("finished", "stopped", "failed", "lost", "under way"))
        title = f"{self.plan.sweep.name}: {counts}, {self.plan.num_trials - len(trials)} to come"
        rows: list[list[Any]] = [
            [
                trial.name,
                describe(trial.point),
                f"{trial.epoch:g}",
                self.shown(trial),
                trial.end or "under way",
            ]
            for trial in trials[-ROWS:]
        ]
        return table(title, ["run", "point", "epoch", self.plan.sweep.metric, ""], rows)

    def shown(self, trial: Trial) -> str:
        """Return a trial's value at its last epoch and, where it would deploy another epoch's weights, theirs."""
        score = self.plan.score(trial)
        if score is None:
            return "-"
        metric = self.plan.sweep.metric
        value = float(trial.reports[-1][metric])
        best = "" if value == score else f" (best weights: {score_text(metric, score)})"
        return score_text(metric, value) + best

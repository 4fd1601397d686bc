"""What Ray Tune asks while a sweep runs: which trial comes next.

The answer is a function of the journal, and is in the journal before Tune gets it. Optuna's TPE, behind Tune's own
searcher, finds the points; a sweep that is started again replays the past to it.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from cluster.sweep.axes import Axis, Integers, LogRange, Values
from cluster.sweep.journal import Event, SweepJournal, Trial
from cluster.sweep.space import Point, Space, num_points
from kdcore.errors import Refused, RunFailed

logging.getLogger("optuna").setLevel(logging.WARNING)

Score = Callable[[Trial], float | None]


class AskedByTune:
    """Base of what Tune asks while it runs: it is not saved, and a refusal stays one.

    Tune pickles what it is given, for a restore of its own; here only the journal is kept. It turns an error in an
    answer into its own, with a traceback as the message: so the first refusal is kept.
    """

    refusal: Refused | RunFailed | None = None

    @contextmanager
    def keeping_refusal(self) -> Iterator[None]:
        """Keep the refusal, or the failure, that the body ends in."""
        try:
            yield
        except (Refused, RunFailed) as error:
            self.refusal = self.refusal or error
            raise

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Raise NotImplementedError: nothing is restored this way."""
        raise NotImplementedError("a sweep is restored from its journal")


class ListSearch:
    """The points of a list, in order."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points

    def ask(self, number: int) -> Point:
        """Return the point with a number."""
        return self.points[number]

    def tell(self, number: int, score: float | None) -> None:
        """Do nothing: a list learns nothing from scores."""


class TpeSearch:
    """Points by Optuna's tree-structured Parzen estimator: seeded, so that the same past gives the same next point."""

    def __init__(self, space: Space) -> None:
        # Numbers as names: Tune would split names at a dot or a slash.
        self.axes, self.metric = dict(enumerate(space.axes.items())), space.sweep.metric
        domains = OptunaSearch.convert_search_space({f"axis{i}": domain(axis) for i, (_, axis) in self.axes.items()})
        self.search = OptunaSearch(domains, metric=self.metric, mode=space.sweep.mode, seed=space.sweep.seed)

    def ask(self, number: int) -> Point:
        """Return the point with a number, the next one that Optuna suggests."""
        drawn = self.search.suggest(str(number))
        assert drawn is not None, "Optuna always has a next point"
        return {name: axis.value(drawn[f"axis{i}"]) for i, (name, axis) in self.axes.items()}

    def tell(self, number: int, score: float | None) -> None:
        """Take in the score of a point that was asked for; None for one that has none."""
        result = None if score is None else {self.metric: score}
        self.search.on_trial_complete(str(number), result, error=score is None)


def domain(axis: Axis) -> Any:
    """Return an axis as a domain of Ray Tune; of several values, their indexes."""
    if isinstance(axis, Values):
        return tune.choice(list(range(len(axis.values))))
    if isinstance(axis, Integers):
        return tune.randint(int(axis.low), int(axis.high) + 1)
    return tune.loguniform(axis.low, axis.high) if isinstance(axis, LogRange) else tune.uniform(axis.low, axis.high)


class Proposals(AskedByTune, Searcher):
    """Hands out trials: those that were interrupted first, then new ones, point by point with every seed.

    prepare: makes what a trial's process gets; Refused for a point that makes no run, which is a failed trial.
    result: returns the result of a finished trial's run.
    """

    def __init__(
        self,
        space: Space,
        journal: SweepJournal,
        score: Score,
        prepare: Callable[[Trial], dict[str, Any]],
        result: Callable[[Trial], dict[str, Any]],
    ) -> None:
        super().__init__()  # without a metric: Tune does not see what is compared
        points = space.points()
        self.source = TpeSearch(space) if points is None else ListSearch(points)
        self.num_seeds = len(space.sweep.seeds)
        self.new = [(number, seed) for number in range(num_points(space)) for seed in space.sweep.seeds]
        self.journal, self.score, self.prepare, self.result = journal, score, prepare, result
        self.asked: dict[int, Point] = {}
        self.told: set[int] = set()
        self.names: dict[str, str] = {}  # {Tune's id: ours}
        self.handed_out: set[str] = set()
        journal.listen(self._hear)

    @property
    def has_more(self) -> bool:
        """Whether there are trials to run."""
        return bool(self.new) or any(trial.end is None for trial in self.journal.trials.values())

    def suggest(self, trial_id: str) -> Any:
        """Return what the next trial's process gets; Tune's constant for the end when there is none."""
        with self.keeping_refusal():
            while trial := self._next():
                self.handed_out.add(trial.name)
                try:
                    prepared = self.prepare(trial)
                except Refused as error:
                    self.journal.end(trial.name, "failed", str(error))
                    continue
                self.names[trial_id] = trial.name
                return prepared
            return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Write down that a trial has ended: by itself, because it was stopped, or lost."""
        trial = self.journal.trials[self.names[trial_id]]
        if trial.end is not None:
            return
        result = result or {}
        with self.keeping_refusal():
            if error:
                self.journal.end(trial.name, "lost", "its process was lost, and lost again at every restart")
            elif reason := result.get("error", ""):
                self.journal.end(trial.name, "lost" if result.get("is_lost") else "failed", reason)
            else:
                self.journal.end(trial.name, "finished", result=self.result(trial))

    def _next(self) -> Trial | None:
        for trial in self.journal.trials.values():
            if trial.end is None and trial.name not in self.handed_out:
                return trial
        if not self.new:
            return None
        number, seed = self.new[0]
        return self.journal.begin(f"{number:03d}-seed{seed}", number, self._point(number), seed)

    def _point(self, number: int) -> Point:
        if number not in self.asked:
            self.asked[number] = self.source.ask(number)
        return self.asked[number]

    def _hear(self, event: Event, trial: Trial) -> None:
        """Keep the search in step with the journal. Refused where it no longer gives the same points."""
        if event["event"] == "begin":
            self.new.remove((trial.number, trial.seed))
            if json.dumps(self._point(trial.number)) != json.dumps(trial.point):  # as text, since nan != nan
                raise Refused(
                    f"point {trial.number} of this sweep was {trial.point}, and the search now gives "
                    f"{self.asked[trial.number]}: have numpy or optuna changed? Restore their versions, or choose "
                    f"another name"
                )
        elif trial.end is not None and trial.number not in self.told:
            self._tell(trial.number)

    def _tell(self, number: int) -> None:
        """Give the search the score of a point, the mean over seeds, once every seed has ended.

        A lost run has not ended: it says nothing about its point, and will be tried again.
        """
        trials = [trial for trial in self.journal.trials.values() if trial.number == number]
        if len(trials) == self.num_seeds and all(trial.end not in (None, "lost") for trial in trials):
            self.told.add(number)
            scores = [score for trial in trials if (score := self.score(trial)) is not None]
            self.source.tell(number, statistics.fmean(scores) if scores else None)

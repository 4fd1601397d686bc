"""A run on machines that fail, simulated event by event: failures, restarts from checkpoints, fewer workers and more.

It knows only seconds and workers. Not here: closed forms of the simplest cases (`ops.capacity.intervals`), and where a
recipe's seconds come from (`ops.capacity.estimate`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

# Called with the seconds since the start and the number of running workers; returns when the next failure strikes.
NextFailure = Callable[[float, int], float]


@dataclass(frozen=True)
class Job:
    """A run, in seconds.

    work_seconds: of all steps on `num_workers`. num_micro_batches: of a step, shared by the workers: a step takes as
    long as the worker with the most of them. interval_seconds: of work, from one checkpoint to the next.
    checkpoint_seconds: how long a checkpoint blocks the steps; its writing during the steps is left out. start_seconds:
    before the first step; restart_seconds: from a failure, or a change of the number of workers, to the next step;
    finish_seconds: after the last step, for validation and the deployed weights. A failure takes `workers_per_failure`
    away for `repair_seconds` (0: others replace them at once); with `min_workers` the run goes on with those left and
    looks for more every `resize_seconds`, otherwise it waits for all. max_failures: the most that the run survives;
    None for no limit.
    """

    work_seconds: float
    interval_seconds: float
    checkpoint_seconds: float = 0.0
    start_seconds: float = 0.0
    restart_seconds: float = 0.0
    finish_seconds: float = 0.0
    num_workers: int = 1
    min_workers: int | None = None
    num_micro_batches: int = 1
    workers_per_failure: int = 1
    repair_seconds: float = 0.0
    resize_seconds: float = 60.0
    max_failures: int | None = None

    @property
    def num_checkpoints(self) -> int:
        """The number of checkpoints written, the last at the end."""
        return max(1, math.ceil(self.work_seconds / self.interval_seconds))

    @property
    def last_interval_seconds(self) -> float:
        """The work before the last checkpoint."""
        return self.work_seconds - (self.num_checkpoints - 1) * self.interval_seconds

    def slowdown(self, workers: int) -> float:
        """Return how many times as long a step takes on this many workers as on all."""
        most = math.ceil(self.num_micro_batches / workers)
        return most / math.ceil(self.num_micro_batches / self.num_workers)


@dataclass
class Outcome:
    """What became of a simulated run.

    wall_seconds is the sum of: starting_seconds (including starts cut off by a failure), computing_seconds (steps whose
    result was kept), checkpoint_seconds, finishing_seconds, lost_seconds (of work that was repeated) and
    waiting_seconds (for workers).
    """

    work_seconds: float
    wall_seconds: float = 0.0
    starting_seconds: float = 0.0
    computing_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    finishing_seconds: float = 0.0
    lost_seconds: float = 0.0
    waiting_seconds: float = 0.0
    num_failures: int = 0
    num_starts: int = 0
    finished: bool = False

    @property
    def goodput(self) -> float:
        """The share of the wall time that the steps would take on all workers without failures; 0 for a failed run."""
        return self.work_seconds / self.wall_seconds if self.finished else 0.0


def exponential_failures(mtbf_seconds: float, rng: np.random.Generator) -> NextFailure:
    """Return memoryless failures. mtbf_seconds: mean time between failures of one worker; infinite for none."""
    return lambda now, workers: now + rng.exponential(mtbf_seconds / workers)


def failures_at(times: Sequence[float]) -> NextFailure:
    """Return failures at these seconds since the start, in ascending order."""

    def following(now: float, workers: int) -> float:
        number = bisect_right(times, now)
        return times[number] if number < len(times) else math.inf

    return following


def simulate(job: Job, next_failure: NextFailure) -> Outcome:
    """Simulate a run to its end, or to one failure too many.

    A failure, or a change of the number of workers, takes the run back to the last checkpoint. A failure while workers
    start makes them start again; none strikes while the run waits for workers.
    """
    run = _Run(job, next_failure)
    while not (run.outcome.finished or run.is_given_up):
        run.wait_for_workers()
        if run.start():
            run.train()
    run.outcome.wall_seconds = run.now
    return run.outcome


def simulate_many(job: Job, mtbf_seconds: float, num_runs: int, seed: int = 0) -> list[Outcome]:
    """Return the outcomes of `num_runs` runs with memoryless failures. mtbf_seconds: of one worker."""
    rng = np.random.default_rng(seed)
    return [simulate(job, exponential_failures(mtbf_seconds, rng)) for _ in range(num_runs)]


@dataclass
class _Run:
    """The state of a simulated run. saved: number of checkpoints; away: when each lost worker is back."""

    job: Job
    next_failure: NextFailure
    now: float = 0.0
    saved: int = 0
    workers: int = 0
    next_look: float = 0.0
    away: list[float] = field(default_factory=list)
    outcome: Outcome = field(init=False)

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.job.work_seconds)

    @property
    def is_given_up(self) -> bool:
        most = self.job.max_failures
        return most is not None and self.outcome.num_failures > most

    def wait_for_workers(self) -> None:
        """Advance until there are enough workers, and take all there are."""
        needed = self.job.min_workers or self.job.num_workers
        missing = needed - (self.job.num_workers - len(self.away))
        if missing > 0 and self.away[missing - 1] > self.now:
            self.outcome.waiting_seconds += self.away[missing - 1] - self.now
            self.now = self.away[missing - 1]
        self.away = [back for back in self.away if back > self.now]
        self.workers = self.job.num_workers - len(self.away)

    def start(self) -> bool:
        """Start the workers; return whether they started before a failure."""
        seconds = self.job.restart_seconds if self.outcome.num_starts else self.job.start_seconds
        begun, ready = self.now, self.now + seconds
        failure = self.next_failure(begun, self.workers)
        self.now = min(ready, failure)
        self.next_look = self.now + self.job.resize_seconds
        self.outcome.num_starts += 1
        self.outcome.starting_seconds += self.now - begun
        if failure < ready:
            self.fail()
        return failure >= ready

    def train(self) -> None:
        """Train to the end, to a failure, or to a change of the number of workers, whichever comes first."""
        job, outcome, begun = self.job, self.outcome, self.now
        slowdown, left = job.slowdown(self.workers), job.num_checkpoints - self.saved
        interval, last = job.interval_seconds * slowdown, job.last_interval_seconds * slowdown
        each = interval + job.checkpoint_seconds
        steps = (left - 1) * each + last + job.checkpoint_seconds if left else 0.0
        end = begun + steps + job.finish_seconds
        failure = self.next_failure(begun, self.workers)
        self.now = min(end, failure, self.next_growth)
        passed, outcome.finished = self.now - begun, self.now == end
        kept = left if outcome.finished or passed >= steps else int(passed / each)
        checkpoints = kept * job.checkpoint_seconds
        computing = steps - checkpoints if kept == left else kept * interval
        self.saved += kept
        outcome.computing_seconds += computing
        outcome.checkpoint_seconds += checkpoints
        if outcome.finished:
            outcome.finishing_seconds = job.finish_seconds
        else:
            outcome.lost_seconds += passed - computing - checkpoints
        if not outcome.finished and self.now == failure:
            self.fail()

    @property
    def next_growth(self) -> float:
        """When the run will find more workers; infinite where none are awaited."""
        if not self.away:
            return math.inf
        looks = max(0, math.ceil((self.away[0] - self.next_look) / self.job.resize_seconds))
        return self.next_look + looks * self.job.resize_seconds

    def fail(self) -> None:
        """Lose the workers of one failure, unless others replace them at once."""
        self.outcome.num_failures += 1
        if self.job.repair_seconds:
            lost = min(self.job.workers_per_failure, self.workers)
            self.away += [self.now + self.job.repair_seconds] * lost

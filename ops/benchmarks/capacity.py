"""How well `ops.capacity` predicts: wall seconds of real runs whose workers are killed, beside those of the simulation.

On each number of workers there is first a run without kills, which gives the seconds of a step, of the start and of the
end, and a run with a kill at a fixed step, which gives the seconds of a restart. Then come runs in which workers are
killed with SIGKILL at times drawn beforehand, exponential, one seed each. Each of these is predicted from the times at
which failures are due, and their mean from the distribution alone; no run is used both to measure and to compare.

    python -m ops.benchmarks.capacity --minutes 60

The machine's speed changes with whatever else runs on it, so each run is also simulated with the seconds that its own
steps and restarts took: what is left of the error then is the simulation's own.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
import ray

from cluster.config import RunConfig
from cluster.polling import polling
from cluster.recipe import parse
from cluster.tracking.journal import read_journal
from cluster.training.launch import launch
from ops.benchmarks.scale import image_folder, recipe
from ops.capacity.intervals import expected_wall_seconds
from ops.capacity.simulation import Job, failures_at, simulate, simulate_many
from ops.console import console, say, table
from ops.facts import spread, write
from ops.spread import spread as summarise

STEPS, EVERY = 200, 20  # of a run, and from one checkpoint to the next
KILLED_AT = 90  # the step, in the run that gives the seconds of a restart
MTBF_SECONDS = 150.0  # of all workers together
SIMULATED_RUNS = 2000
PAUSE_SECONDS = 4.0  # between two steps: a restart takes longer, a checkpoint does not


class Killer:
    """Kills a worker of a run at given seconds since its launch, or as soon as it has taken given steps.

    Where no worker of the run is there, the first that comes is killed: so a start can be hit, too.
    """

    def __init__(self, times: Sequence[float] = (), steps: Sequence[int] = ()) -> None:
        self.times, self.steps = list(times), list(steps)
        self.launched = time.monotonic()
        self.step, self.is_starting = 0, True
        self.doomed: set[int] = set()  # processes of the groups that kills have ended
        self.killed: list[float] = []  # seconds since the launch
        self.restart_seconds: list[float] = []  # from a kill to the first step that is seen after it

    @property
    def now(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.launched

    def look(self) -> None:
        """Kill the last worker of the group where a kill is due."""
        due = self.times if self.times and self.times[0] <= self.now else self.steps
        if due is self.steps and not (self.steps and self.steps[0] <= self.step):
            return
        if alive := [pid for pid in worker_processes() if pid not in self.doomed]:
            os.kill(alive[-1], signal.SIGKILL)
            due.pop(0)
            self.doomed.update(alive)
            self.killed.append(self.now)

    def watch(self, state: dict[str, Any], messages: list[str]) -> None:
        """Note at which step the run is, and how long after a kill it has taken one again."""
        self.step = state.get("step", 0)
        if self.is_starting and self.step and self.killed:
            self.restart_seconds.append(self.now - self.killed[-1])
        self.is_starting = not self.step


def worker_processes() -> list[int]:
    """Return the processes of training workers that this process's Ray has started, in ascending order."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:  # it has just ended
            continue
    return sorted(found)


@dataclass(frozen=True)
class Measured:
    """A run as it went. finish_seconds: after the last step; load: the machine's, mean of before and after."""

    wall_seconds: float
    step_seconds: float
    start_seconds: float
    finish_seconds: float
    restart_seconds: list[float]
    killed: list[float]
    load: float

    def job(self, num_workers: int, restart_seconds: float) -> Job:
        """Return the run as the simulation knows it."""
        return Job(
            work_seconds=STEPS * self.step_seconds,
            interval_seconds=EVERY * self.step_seconds,
            start_seconds=self.start_seconds,
            restart_seconds=restart_seconds,
            num_workers=num_workers,
        )


def measure(folder: Path, name: str, num_workers: int, killer: Killer) -> Measured:
    """Carry a run out under a killer, and return its seconds."""
    config, load = configuration(folder, name, num_workers), os.getloadavg()[0]
    launched, killer.launched = time.time(), time.monotonic()
    with polling(killer.look, 0.1):
        launch(config, watch=killer.watch)
    wall = time.time() - launched
    rows = [row for row in read_journal(config.run_dir / "metrics.jsonl") if "train/loss" in row]
    assert rows[-1]["step"] == STEPS, "the run has gone to its end"
    times = np.array([row["time"] for row in rows])
    gaps = np.diff(times)
    step = float((gaps[gaps < PAUSE_SECONDS] if killer.killed else gaps).mean())
    measured = Measured(
        wall_seconds=wall,
        step_seconds=step,
        start_seconds=float(times[0]) - launched - step,
        finish_seconds=launched + wall - float(times[-1]),
        restart_seconds=killer.restart_seconds,
        killed=killer.killed,
        load=(load + os.getloadavg()[0]) / 2,
    )
    say(f"{name}: {wall:.1f} s, {len(killer.killed)} kills, {1e3 * step:.0f} ms a step, load {measured.load:.1f}")
    return measured


def configuration(folder: Path, name: str, num_workers: int) -> RunConfig:
    """Return the configuration of a run of a ResNet-20 on pictures of 32 pixels."""
    changed = {
        "scaling": {"num_workers": num_workers, "max_failures": -1},
        "checkpoint": {"every_steps": EVERY},
    }
    epochs = {"epochs": STEPS, "evaluate_every_epochs": STEPS}
    return parse(recipe(folder, name, num_workers, max_steps=STEPS, **epochs) | changed)


@dataclass(frozen=True)
class Subject:
    """A number of workers: its run without kills, its run with one, and what the simulation makes of them."""

    num_workers: int
    plain: Measured
    once_killed: Measured

    @classmethod
    def measured(cls, folder: Path, num_workers: int) -> Subject:
        """Carry both runs out."""
        plain = measure(folder, f"{num_workers}-plain", num_workers, Killer())
        return cls(num_workers, plain, measure(folder, f"{num_workers}-once", num_workers, Killer(steps=[KILLED_AT])))

    @property
    def job(self) -> Job:
        """A run, as predicted."""
        return self.plain.job(self.num_workers, mean(self.once_killed.restart_seconds))

    def killed_run(self, folder: Path, seed: int) -> dict[str, Any]:
        """Carry out a run whose workers are killed at times of this seed, and return it beside its prediction."""
        times = np.cumsum(np.random.default_rng(seed).exponential(MTBF_SECONDS, 100)).tolist()
        predicted = simulate(self.job, failures_at(times))
        seconds = predicted.wall_seconds + self.plain.finish_seconds
        measured = measure(folder, f"{self.num_workers}-seed{seed}", self.num_workers, Killer(times))
        own = measured.job(self.num_workers, mean(measured.restart_seconds or [self.job.restart_seconds]))
        if measured.killed and measured.killed[0] < own.start_seconds:  # the first step came after a restart
            own = replace(own, start_seconds=self.job.start_seconds)
        replayed = simulate(own, failures_at(measured.killed)).wall_seconds + measured.finish_seconds
        return {
            "seed": seed,
            "due": times[: predicted.num_failures + 1],
            "predicted_seconds": seconds,
            "predicted_failures": predicted.num_failures,
            "measured": asdict(measured),
            "error": seconds / measured.wall_seconds - 1,
            "error_with_own_seconds": replayed / measured.wall_seconds - 1,
        }

    def result(self, runs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what was measured and predicted, of single runs and on average."""
        drawn = simulate_many(self.job, self.num_workers * MTBF_SECONDS, SIMULATED_RUNS)
        walls = [one.wall_seconds + self.plain.finish_seconds for one in drawn]
        return {
            "job": asdict(self.job),
            "plain": asdict(self.plain),
            "once_killed": asdict(self.once_killed),
            "runs": runs,
            "expected": {
                "closed_form_seconds": expected_wall_seconds(self.job, MTBF_SECONDS) + self.plain.finish_seconds,
                "simulated_seconds": summarise(walls),
                "goodput": summarise([one.goodput for one in drawn]),
            },
            "wall_seconds": spread([run["measured"]["wall_seconds"] for run in runs]),
            "absolute_error": spread([abs(run["error"]) for run in runs]),
            "absolute_error_with_own_seconds": spread([abs(run["error_with_own_seconds"]) for run in runs]),
        }


def main() -> None:
    """Measure on each number of workers, and write and print what came out after every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the times of the kills")
    parser.add_argument("--minutes", type=float, default=60.0, help="no seed is begun later (default: %(default)s)")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    os.environ.setdefault("RAY_worker_niceness", "0")  # else whatever else runs here goes first
    ray.init("local", num_cpus=max(args.workers), include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            image_folder(folder / "images")
            subjects = [Subject.measured(folder, number) for number in args.workers]
            runs: dict[int, list[dict[str, Any]]] = {number: [] for number in args.workers}
            for seed in args.seeds:
                if time.monotonic() > until:
                    break
                for subject in subjects:
                    runs[subject.num_workers].append(subject.killed_run(folder, seed))
                publish({str(one.num_workers): one.result(runs[one.num_workers]) for one in subjects})
    finally:
        ray.shutdown()


def publish(found: dict[str, Any]) -> None:
    """Write and print what was predicted and what was measured."""
    settings = {"steps": STEPS, "checkpoint_every_steps": EVERY, "mtbf_seconds": MTBF_SECONDS}
    path = write("capacity", {"settings": settings, "workers": found})
    rows = [
        [
            f"{number}, seed {run['seed']}",
            f"{len(run['measured']['killed'])} ({run['predicted_failures']})",
            f"{run['measured']['wall_seconds']:.1f}",
            f"{run['predicted_seconds']:.1f}",
            f"{run['error']:+.1%}",
            f"{run['error_with_own_seconds']:+.1%}",
            f"{run['measured']['load']:.1f}",
        ]
        for number, one in found.items()
        for run in one["runs"]
    ]
    columns = ["workers", "kills (predicted)", "wall s", "predicted s", "error", "with its own seconds", "load"]
    console.print(table("runs with workers killed", columns, rows))
    say(f"written: {path}")


if __name__ == "__main__":
    main()

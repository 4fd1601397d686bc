"""How well `ops.capacity` predicts: wall seconds of real runs whose workers are killed, next to simulated ones.

On each number of workers there is first a run without kills, which gives the seconds of a step, of the start and of the
end, and a run with a kill at a fixed step, which gives the seconds of a restart. Then come runs in which workers are
killed with SIGKILL at times drawn beforehand, exponential, one seed each. Each of these is predicted from the times at
which failures are due, and their mean from the distribution alone; no run is used both to measure and to compare.

    python -m ops.benchmarks.capacity --minutes 60

The machine's speed changes with its other load, so each run is also simulated with the seconds that its own steps and
restarts took: the error that is left is the simulation's own.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import ray

from cluster.polling import polling
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.training.launch import launch
from ops.benchmarks.killer import Killer
from ops.benchmarks.small_run import image_folder, recipe
from ops.capacity.intervals import expected_wall_seconds
from ops.capacity.simulation import Job, Outcome, failures_at, simulate, simulate_many
from ops.console import console, say, table
from ops.facts import RESULTS, spread, write
from ops.spread import spread as summarise
from pipelines.files import write_json

STEPS, EVERY = 200, 20  # of a run, and from one checkpoint to the next
KILLED_AT = 90  # the step, in the run that gives the seconds of a restart
MTBF_SECONDS = 40.0  # of all workers together: a run has some kills
SIMULATED_RUNS = 2000
SETTINGS = {"steps": STEPS, "checkpoint_every_steps": EVERY, "mtbf_seconds": MTBF_SECONDS}
RESULT = "capacity"
PAUSE_SECONDS = 4.0  # between two steps: a restart takes longer, a checkpoint does not


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


def measure(folder: Path, name: str, num_workers: int, killer: Killer) -> Measured:
    """Train a run under a killer, and return its seconds."""
    config, load = configuration(folder, name, num_workers), os.getloadavg()[0]
    launched, killer.launched = time.time(), time.monotonic()
    with polling(killer.look, 0.1):
        launch(config, watch=killer.watch)
    wall = time.time() - launched
    rows = [row for row in read_journal(RunFolder.of(config).metrics) if "train/loss" in row]
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
    """A number of workers: its run without kills, its run with one, and those killed at the times of a seed."""

    num_workers: int
    plain: Measured
    once_killed: Measured
    killed: dict[int, Measured] = field(default_factory=dict)

    @classmethod
    def measured(cls, folder: Path, num_workers: int) -> Subject:
        """Train the two runs that the prediction is based on."""
        plain = measure(folder, f"{num_workers}-plain", num_workers, Killer())
        return cls(num_workers, plain, measure(folder, f"{num_workers}-once", num_workers, Killer(steps=[KILLED_AT])))

    @classmethod
    def read(cls, num_workers: int, found: dict[str, Any]) -> Subject:
        """Return the subject of `num_workers` workers in a result file."""
        killed = {run["seed"]: Measured(**run["measured"]) for run in found["runs"]}
        return cls(num_workers, Measured(**found["plain"]), Measured(**found["once_killed"]), killed)

    def kill(self, folder: Path, seed: int) -> None:
        """Train the run whose workers are killed at the times of a seed."""
        self.killed[seed] = measure(folder, f"{self.num_workers}-seed{seed}", self.num_workers, Killer(times_of(seed)))

    @property
    def job(self) -> Job:
        """A run, as predicted."""
        return Job(
            work_seconds=STEPS * self.plain.step_seconds,
            interval_seconds=EVERY * self.plain.step_seconds,
            start_seconds=self.plain.start_seconds,
            restart_seconds=mean(self.once_killed.restart_seconds),
            finish_seconds=self.plain.finish_seconds,
            num_workers=self.num_workers,
        )

    def own_job(self, measured: Measured) -> Job:
        """Return the run with the seconds of its own steps and restarts, and of its start where no kill struck it."""
        job = replace(
            self.job,
            work_seconds=STEPS * measured.step_seconds,
            interval_seconds=EVERY * measured.step_seconds,
            restart_seconds=mean(measured.restart_seconds or [self.job.restart_seconds]),
        )
        is_struck = bool(measured.killed) and measured.killed[0] < measured.start_seconds
        return job if is_struck else replace(job, start_seconds=measured.start_seconds)

    def compare(self, seed: int, measured: Measured) -> dict[str, Any]:
        """Return a run with its predictions: from the times drawn, and from its own seconds and kills."""
        predicted = simulate(self.job, failures_at(times_of(seed)))
        replayed = simulate(self.own_job(measured), failures_at(measured.killed))
        return {
            "seed": seed,
            "measured": asdict(measured),
            "predicted_failures": predicted.num_failures,
            **errors(measured.wall_seconds, predicted, replayed),
        }

    @property
    def result(self) -> dict[str, Any]:
        """What was measured and predicted, of single runs and on average."""
        runs = [self.compare(seed, measured) for seed, measured in self.killed.items()]
        drawn = simulate_many(self.job, self.num_workers * MTBF_SECONDS, SIMULATED_RUNS)
        return {
            "job": asdict(self.job),
            "plain": asdict(self.plain),
            "once_killed": asdict(self.once_killed),
            "runs": runs,
            "expected": {
                "closed_form_seconds": expected_wall_seconds(self.job, MTBF_SECONDS),
                "simulated_seconds": summarise([one.wall_seconds for one in drawn]),
                "goodput": summarise([one.goodput for one in drawn]),
            },
            "wall_seconds": spread([run["measured"]["wall_seconds"] for run in runs]),
            "absolute_error": spread([abs(run["error"]) for run in runs]),
            "absolute_error_with_own_seconds": spread([abs(run["error_with_own_seconds"]) for run in runs]),
        }


def errors(wall_seconds: float, predicted: Outcome, replayed: Outcome) -> dict[str, float]:
    """Return the predicted seconds and their error (predicted / measured - 1), also with the run's own seconds."""
    return {
        "predicted_seconds": predicted.wall_seconds,
        "error": predicted.wall_seconds / wall_seconds - 1,
        "error_with_own_seconds": replayed.wall_seconds / wall_seconds - 1,
    }


def times_of(seed: int) -> list[float]:
    """Return the seconds since the launch at which failures are due."""
    return [float(seconds) for seconds in np.cumsum(np.random.default_rng(seed).exponential(MTBF_SECONDS, 100))]


def main() -> None:
    """Measure on each number of workers, and write and print the results after every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the times of the kills")
    parser.add_argument("--minutes", type=float, default=60.0, help="no seed is begun later (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="only predict again, for the runs in the result file")
    args = parser.parse_args()
    if args.again:
        predict_again()
        return
    until = time.monotonic() + 60 * args.minutes
    os.environ.setdefault("RAY_worker_niceness", "0")  # else other processes here go first
    ray.init("local", num_cpus=max(args.workers), include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            image_folder(folder / "images")
            subjects = [Subject.measured(folder, number) for number in args.workers]
            for seed in args.seeds:
                if time.monotonic() > until:
                    break
                for subject in subjects:
                    subject.kill(folder, seed)
                found = {str(one.num_workers): one.result for one in subjects}
                say(f"written: {write(RESULT, {'settings': SETTINGS, 'workers': found})}")
                report(found)
    finally:
        ray.shutdown()


def predict_again() -> None:
    """Rewrite the result file with what is now predicted for its runs; its facts stay those of the measurement."""
    path = RESULTS / f"{RESULT}.json"
    content = json.loads(path.read_text())
    assert content["settings"] == SETTINGS, "the runs are of other settings"
    content["workers"] = {
        number: Subject.read(int(number), found).result for number, found in content["workers"].items()
    }
    write_json(path, content)
    report(content["workers"])


def report(found: dict[str, Any]) -> None:
    """Print what was predicted and what was measured."""
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


if __name__ == "__main__":
    main()

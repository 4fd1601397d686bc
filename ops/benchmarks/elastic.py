"""How well `ops.capacity` predicts an elastic run: a node dies, the run goes on with the other, and grows again.

Two nodes of one machine have a worker each. An undisturbed run gives the seconds of a step, of the start and of the
end; a run whose node dies at a fixed step gives those of a restart, with one worker and with two. Then come runs whose
node dies at times drawn beforehand; a new one joins after REPAIR_SECONDS. Each is predicted from the time drawn, by the
simulation that the command `capacity` uses; no run is used both to measure and to compare.

    python -m ops.benchmarks.elastic

A single worker computes the micro-batches of both, so the simulation takes its steps to be twice as long: that, too, is
compared here. As in `ops.benchmarks.capacity`, each run is simulated again with the seconds that its own steps and
restarts took.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

from cluster.polling import polling
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.training.launch import launch
from ops.benchmarks.capacity import errors
from ops.benchmarks.small_run import image_folder, recipe
from ops.capacity.simulation import Job, failures_at, simulate
from ops.console import console, say, table
from ops.facts import spread, write

STEPS, EVERY = 400, 20  # of a run, and from one checkpoint to the next
LOST_AT = 100  # the step, in the run that gives the seconds of a restart
DRAWN_FROM = (0.1, 0.6)  # of the steps' seconds: when a node dies
REPAIR_SECONDS, RESIZE_SECONDS = 30.0, 5.0
WORKERS = 2
RESULT = "elastic"
CONTINUING = re.compile(r"continuing at step \d+ of \d+, workers: (\d+)")
# A dead node is noticed within seconds, and a place on it is not waited for.
SYSTEM = {"health_check_period_ms": 1000, "health_check_failure_threshold": 10}
PLACE_TIMEOUT = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}


class Nodes:
    """A cluster of WORKERS nodes of one CPU on this machine, and a head that has none."""

    def __init__(self) -> None:
        # Nodes are added by a thread, which cannot handle signals: `close` ends them, not a handler of each.
        head = {"num_cpus": 0, "_system_config": SYSTEM}
        self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.nodes = [self.cluster.add_node(num_cpus=1) for _ in range(WORKERS)]

    def lose(self) -> None:
        """Kill the oldest node, with its worker."""
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def join(self) -> None:
        """Add a node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def close(self) -> None:
        """End all nodes."""
        self.cluster.shutdown()


@dataclass
class Story:
    """What happens to a run, and what is seen of it: a node is lost at a time or a step, and another joins later.

    Times are seconds since the launch. seen: (time, step, workers), whenever the step changes.
    """

    nodes: Nodes
    at_seconds: float | None = None
    at_step: int | None = None
    launched: float = field(default_factory=time.monotonic)
    lost: float | None = None
    joined: float | None = None
    workers: int = WORKERS
    seen: list[tuple[float, int, int]] = field(default_factory=list)

    @property
    def now(self) -> float:
        """Seconds since the launch."""
        return time.monotonic() - self.launched

    def look(self) -> None:
        """Kill the node, or add another, when that is due."""
        step = self.seen[-1][1] if self.seen else 0
        is_due = (self.at_seconds is not None and self.now >= self.at_seconds) or (
            self.at_step is not None and step >= self.at_step
        )
        if self.lost is None and is_due:
            self.lost = self.now
            self.nodes.lose()
        if self.lost is not None and self.joined is None and self.now >= self.lost + REPAIR_SECONDS:
            self.joined = self.now
            self.nodes.join()

    def watch(self, state: dict[str, Any], messages: list[str]) -> None:
        """Record the step, and the number of workers that the run goes on with."""
        for message in messages:
            if found := CONTINUING.search(message):
                self.workers = int(found[1])
        step = state.get("step", 0)
        if step and (not self.seen or self.seen[-1][1:] != (step, self.workers)):
            self.seen.append((self.now, step, self.workers))

    def step_seconds(self, workers: int) -> float | None:
        """Return the mean seconds of a step with this many workers, without restarts; None where no step had them."""
        pairs = [
            (later[0] - earlier[0], later[1] - earlier[1])
            for earlier, later in zip(self.seen, self.seen[1:], strict=False)
            if earlier[2] == later[2] == workers and later[1] > earlier[1]
        ]
        return sum(seconds for seconds, _ in pairs) / sum(steps for _, steps in pairs) if pairs else None

    @property
    def restart_seconds(self) -> list[float]:
        """Seconds from the node's loss to the next step, and from the last step of one worker to the next of two."""
        found = []
        for earlier, later in zip(self.seen, self.seen[1:], strict=False):
            if earlier[2] != later[2]:
                found.append(later[0] - (self.lost if later[2] < earlier[2] and self.lost else earlier[0]))
        return found


@dataclass(frozen=True)
class Measured:
    """A run as it went. finish_seconds: after the last step; load: the machine's, mean of before and after."""

    wall_seconds: float
    step_seconds: float
    step_seconds_alone: float | None
    start_seconds: float
    finish_seconds: float
    restart_seconds: list[float]
    lost: float | None
    joined: float | None
    load: float


def measure(folder: Path, name: str, story: Story) -> Measured:
    """Train a run, and return its seconds."""
    config, load = configuration(folder, name), os.getloadavg()[0]
    story.launched = time.monotonic()
    with polling(story.look, 0.1):
        launch(config, watch=story.watch)
    wall = story.now
    step = story.step_seconds(WORKERS)
    assert step is not None, "the run has taken steps with all workers"
    assert story.seen[-1][1] == STEPS, "the run has gone to its end"
    first, number, _ = story.seen[0]
    measured = Measured(
        wall_seconds=wall,
        step_seconds=step,
        step_seconds_alone=story.step_seconds(1),
        start_seconds=first - number * step,
        finish_seconds=wall - story.seen[-1][0],
        restart_seconds=story.restart_seconds,
        lost=story.lost,
        joined=story.joined,
        load=(load + os.getloadavg()[0]) / 2,
    )
    say(f"{name}: {measured}")
    if story.lost is not None and story.joined is None:  # the run ended first; the next needs two nodes, too
        story.nodes.join()
    return measured


def configuration(folder: Path, name: str) -> RunConfig:
    """Return the configuration of an elastic run of a ResNet-20 on pictures of 32 pixels."""
    scaling = {"num_workers": WORKERS, "min_workers": 1, "resize_seconds": RESIZE_SECONDS, "max_failures": -1}
    train = {"max_steps": STEPS, "epochs": STEPS, "evaluate_every_epochs": STEPS}
    changed = {"scaling": scaling, "checkpoint": {"every_steps": EVERY}}
    return parse(recipe(folder, name, WORKERS, **train) | changed)


def job_of(plain: Measured, restarts: list[float]) -> Job:
    """Return the run, in the seconds that were measured."""
    return Job(
        work_seconds=STEPS * plain.step_seconds,
        interval_seconds=EVERY * plain.step_seconds,
        start_seconds=plain.start_seconds,
        restart_seconds=mean(restarts),
        finish_seconds=plain.finish_seconds,
        num_workers=WORKERS,
        min_workers=1,
        num_micro_batches=WORKERS,
        repair_seconds=REPAIR_SECONDS,
        resize_seconds=RESIZE_SECONDS,
    )


def compare(job: Job, seed: int, due: float, measured: Measured) -> dict[str, Any]:
    """Return a run with its predictions: from the time drawn, and from its own seconds."""
    own = replace(
        job_of(measured, measured.restart_seconds or [job.restart_seconds]), start_seconds=measured.start_seconds
    )
    predicted = simulate(job, failures_at([due]))
    replayed = simulate(own, failures_at([] if measured.lost is None else [measured.lost]))
    return {
        "seed": seed,
        "due_seconds": due,
        "measured": asdict(measured),
        "predicted_starts": predicted.num_starts,
        **errors(measured.wall_seconds, predicted, replayed),
    }


def draw(seed: int, plain: Measured) -> float:
    """Return when the node of a seed's run dies, in seconds since the launch."""
    part = np.random.default_rng(seed).uniform(*DRAWN_FROM)
    return float(plain.start_seconds + part * STEPS * plain.step_seconds)


def main() -> None:
    """Measure, and write and print the results after every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the time at which the node dies")
    args = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")  # else other processes here go first
    os.environ.update(PLACE_TIMEOUT)
    nodes = Nodes()
    try:
        ray.init(address=nodes.cluster.address, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            image_folder(folder / "images")
            plain = measure(folder, "plain", Story(nodes))
            once = measure(folder, "once", Story(nodes, at_step=LOST_AT))
            job, runs = job_of(plain, once.restart_seconds), []
            for seed in args.seeds:
                due = draw(seed, plain)
                runs.append(compare(job, seed, due, measure(folder, f"seed{seed}", Story(nodes, at_seconds=due))))
                content = {
                    "settings": {"steps": STEPS, "checkpoint_every_steps": EVERY, "repair_seconds": REPAIR_SECONDS},
                    "job": asdict(job),
                    "plain": asdict(plain),
                    "once": asdict(once),
                    "runs": runs,
                    "absolute_error": spread([abs(run["error"]) for run in runs]),
                    "absolute_error_with_own_seconds": spread([abs(run["error_with_own_seconds"]) for run in runs]),
                }
                say(f"written: {write(RESULT, content)}")
            report(runs)
    finally:
        ray.shutdown()
        nodes.close()


def report(runs: list[dict[str, Any]]) -> None:
    """Print what was predicted and what was measured."""
    columns = ["seed", "lost at, s", "wall s", "predicted s", "error", "with its own seconds"]
    rows = [
        [
            str(run["seed"]),
            f"{run['measured']['lost'] or 0:.1f}",
            f"{run['measured']['wall_seconds']:.1f}",
            f"{run['predicted_seconds']:.1f}",
            f"{run['error']:+.1%}",
            f"{run['error_with_own_seconds']:+.1%}",
        ]
        for run in runs
    ]
    console.print(table("elastic runs that lose a node and get another", columns, rows))


if __name__ == "__main__":
    main()

"""A cluster of several nodes on one machine, each in its own network: whatever is killed, and whenever, the run ends
with the very bits of an undisturbed one. With mixing, a moving average and gradient accumulation on."""

import contextlib
import json
import math
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import safetensors.torch
import torch

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse, to_yaml
from cluster.tracking.journal import read_journal
from cluster.training.board import STARTS_METRIC
from cluster.training.launch import RunResult, launch
from cluster.training.loop import TrainingLoop
from cluster.training.progress import GAUGES
from cluster.training.recovery import CHECKPOINTS
from kdcore.configs import ModelConfig
from kdcore.errors import RunFailed
from kdcore.models import build_model
from pipelines.views.plan import ViewPlan
from tests.cluster.machines import NUM_CPUS, ROOT
from tests.cluster.training.blows import STEPS, Blow, Blows, random_steps
from tests.commands import Command

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

ENDLESS = 40_000  # until a node has come and was noticed, on a fast machine too
UNHURRIED = ROOT / "tests" / "unhurried.py"
BATCH, MICRO_BATCH = 12, 2
EPOCH = 48 // BATCH  # steps


@pytest.fixture(scope="module")
def configuration(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    """A function that gives the configuration of a run of a name: 3 workers, 2 micro-batches a worker and step. Three
    is the fewest whose sums depend on their order."""
    folder = tmp_path_factory.mktemp("nodes")
    teacher = folder / "teacher.safetensors"

    torch.manual_seed(7)
    safetensors.torch.save_file(build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c")).state_dict(), teacher)

    def make(name: str, steps: int = STEPS, **scaling: Any) -> RunConfig:
        return parse(
            {
                "name": name,
                "output_dir": str(folder / "out"),
                "data": {"root": str(image_folder), "num_threads": 1, "loader": "reference"},
                "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0], "mixup_alpha": 0.4, "cutmix_alpha": 1.0},
                "student": {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}},
                "teacher": {"model": "cifar_resnet8", "checkpoint": str(teacher)},
                "method": [
                    {"term": "ce", "weight": 0.5},
                    {"term": "kd", "weight": 0.5, "temperature": 4.0},
                    {"term": "feature_mse", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}]},
                ],
                "schedule": {"sched": "constant"},
                "optimizer": {"opt": "sgd", "lr": 0.05, "momentum": 0.9},
                "train": {
                    "epochs": steps // EPOCH,
                    "batch_size": BATCH,
                    "micro_batch": MICRO_BATCH,
                    "clip_norm": 5.0,
                    "ema_decay": 0.9,
                    "evaluate_every_epochs": steps,
                },
                "scaling": {"num_workers": 3, "max_failures": 1, **scaling},
                "tracking": {"system_metrics": False, "every_steps": 1, "record_batches": True},
                "checkpoint": {"every_steps": 4},
            }
        )

    return make


class Scrape:
    """Watches a run and reads the Ray metrics of every node, as Prometheus would: {metric: value} of the run."""

    def __init__(self, run: str) -> None:
        self.pattern = re.compile(rf'^ray_(stillhouse_\w+){{.*run="{run}".*}} (\S+)$', re.MULTILINE)
        self.found: dict[str, float] = {}

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        for node in ray.nodes() if state else []:
            with contextlib.suppress(OSError):
                address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                text = urllib.request.urlopen(address, timeout=2).read().decode()
                self.found |= {name: float(value) for name, value in self.pattern.findall(text)}


@pytest.fixture(scope="module")
def scrape() -> Scrape:
    return Scrape("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(nodes, configuration, scrape) -> RunResult:
    return launch(configuration("undisturbed"), watch=scrape)


def assert_same_bits(one: RunResult, other: RunResult) -> None:
    """The deployed weights of two runs are the same, and so is the loss of every step, each logged once."""
    first, second = (safetensors.torch.load_file(Path(run.run_dir) / "student.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ours, theirs = (losses(Path(run.run_dir)) for run in (one, other))
    assert [step for step, _ in ours] == list(range(1, STEPS + 1))
    assert ours == theirs


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, training loss) of a run, as logged."""
    rows = read_journal(folder / "metrics.jsonl")
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def test_metrics_of_the_run(undisturbed, scrape):
    """Step, speed and loss of a run in Ray's metrics, under its name."""
    assert set(scrape.found) == {name for name, _ in GAUGES.values()} | {STARTS_METRIC[0]}
    assert scrape.found["stillhouse_starts"] == 1
    assert 0 < scrape.found["stillhouse_step"] <= STEPS
    assert scrape.found["stillhouse_images_per_second"] > 0


class Attendance:
    """Watches a run: an event for a step that it has come to, and one for its going on with a single worker. Ends it as
    Ctrl-C does once it has gone on with two again."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.at_step, self.alone = threading.Event(), threading.Event()
        self.last_step = math.inf

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        if state.get("step", 0) >= self.step:
            self.at_step.set()
        for message in messages:
            if found := re.match(r"continuing at step (\d+) of \d+, workers: (\d)", message):
                if found[2] == "1":
                    self.alone.set()
                else:
                    self.last_step = max(int(found[1]) + 8, 40)
        if state.get("step", 0) >= self.last_step:
            self.last_step = math.inf
            interrupt()


def interrupt() -> None:
    """Interrupt the main thread as Ctrl-C does; it waits, so that the signal has to come to it."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, which a shell has those ignore that it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_nodes_go_and_come(nodes, configuration, undisturbed, monkeypatch, interruptible):
    """With a worker on each of two nodes, the run goes on with one when a node dies, and with two again when one comes:
    the same samples in the same micro-batches throughout, and losses equal to rounding."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")  # of the dead node's place
    scaling = {"num_workers": 2, "cpus_per_worker": NUM_CPUS, "min_workers": 1, "resize_seconds": 1.0}
    monkeypatch.setattr(TrainingLoop, "step", TrainingLoop.step)  # the plug-in changes this process, too
    config = configuration("elastic", steps=ENDLESS, max_failures=2, **scaling)
    config = config.model_copy(update={"plugins": (str(UNHURRIED),)})
    watch = Attendance(step=20)

    def kill_and_join() -> None:
        assert watch.at_step.wait(200)
        nodes.kill_node(nodes.workers()[0][0])
        assert watch.alone.wait(200)
        nodes.join()

    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill_and_join)
        killed.add_done_callback(lambda done: done.exception() and interrupt())
        with pytest.raises(KeyboardInterrupt) as ended:
            launch(config, watch)
    killed.result()
    steps = int(re.search(r"a checkpoint of step (\d+) is written", str(ended.value))[1])
    assert steps >= 40
    assert_the_plan_was_kept(config, steps)
    # Rounding grows with every step; these are the 20 before the change and the 20 after it.
    ours, theirs = (losses(folder)[:40] for folder in (config.run_dir, Path(undisturbed.run_dir)))
    assert [step for step, _ in ours] == list(range(1, 41))
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)


def assert_the_plan_was_kept(config: RunConfig, steps: int) -> None:
    """Every micro-batch of so many steps was run, with the samples that the seed alone decides."""
    plan = ViewPlan(config.views, config.seed, 48)
    lines = [line for path in config.run_dir.glob("batches-*.jsonl") for line in path.read_text().splitlines()]
    rows = [row for row in map(json.loads, lines) if row["step"] < steps]
    assert {(row["step"], row["micro_batch"]) for row in rows} == {
        (s, m) for s in range(steps) for m in range(BATCH // MICRO_BATCH)
    }
    for row in rows:
        epoch, within = divmod(row["step"], EPOCH)
        start = within * BATCH + row["micro_batch"] * MICRO_BATCH
        assert row["sample_ids"] == plan.order(epoch, np.arange(start, start + MICRO_BATCH)).tolist()


# After the elastic run: for three minutes, Ray keeps for a run whose driver is killed what an elastic one would get.
def test_driver_workers_and_nodes_are_killed(nodes, configuration, undisturbed, tmp_path, worker_executable):
    """The driver; then, as the run is launched again, a worker, every worker of a node, and a whole node, whose place a
    spare one takes: all in one run. What looks like a later checkpoint, half written, and a list that was cut off while
    it was written, do not disturb it."""
    strikes = (
        lambda: nodes.kill_workers(1),
        lambda: nodes.kill_workers(address=nodes.busiest()),
        lambda: nodes.kill_node(nodes.busiest()),
    )
    first, *others = random_steps(1, 1 + len(strikes))
    config = configuration("killed", max_failures=len(strikes))
    kill_driver(config, first, nodes.address, worker_executable, tmp_path)
    half = config.run_dir / f"step-{STEPS:08d}"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half of it")
    listed = config.run_dir / CHECKPOINTS
    listed.write_bytes(listed.read_bytes()[:-20])
    nodes.join()
    watch = Blows(*map(Blow, others, strikes))
    result = launch(config, watch=watch)
    assert 0 < watch.began_at < STEPS
    watch.check()
    assert_same_bits(undisturbed, result)


def kill_driver(config: RunConfig, step: int, address: str, workers: str, folder: Path) -> None:
    """Start `train` in a process of its own, and end it with SIGKILL at a step of its journal."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(to_yaml(config))
    driver = Command(["train", str(recipe)], folder / "output", workers, {"RAY_ADDRESS": address})
    while driver.poll() is None:
        rows = read_journal(config.run_dir / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            driver.kill()
    assert driver.returncode == -signal.SIGKILL, driver.said


def test_a_rank_hangs(nodes, configuration):
    """A rank that stops answering ends the run in time, with an error that names the step, who waited and for whom."""
    hang = Blow(8, lambda: nodes.kill_workers(1, by=signal.SIGSTOP))
    timed_out = r".*(Timed out|timed out|timeout|Connection closed).*"
    # Where the ranks average their gradients; or where they report a checkpoint, in Ray's words.
    places = rf"(, step \d+ of {STEPS}:{timed_out}|:{timed_out}\(the last step reported is \d+\))"
    said = rf"rank \d{places}; it waited for rank \d in vain"
    with pytest.raises(RunFailed, match=said):
        launch(configuration("hangs", num_workers=2, max_failures=0, timeout_seconds=10), watch=Blows(hang))

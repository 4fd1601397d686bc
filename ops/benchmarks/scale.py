"""What it costs to run on several workers, to start, and to be able to resume.

* steps: seconds per step at 1, 2 and 4 workers, the share of them spent waiting for data, and the share that averaging
  the gradients adds (the same step with and without it, in turns);
* start: seconds from the command to the end of the first step, against a Ray Train job of the same number of workers
  that does nothing else; in turns. The difference is this project's share;
* checkpoints: how long one of 25 million parameters blocks the training loop, and how long it is then written; and, in
  a run that takes one every few steps, the seconds that each adds to the step after it.

    python -m ops.benchmarks.scale

Workers share this machine's cores: on a small machine the steps show what the machinery costs, not how training scales.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.tracking.folder import RunFolder
from ops.benchmarks.small_run import image_folder, recipe
from ops.console import console, table
from ops.facts import spread, write

ROOT = Path(__file__).parents[2]
BARE = """
import sys, time
import ray, ray.train, torch
from ray.train.torch import TorchTrainer, prepare_model

def loop(config):
    model = prepare_model(torch.nn.Linear(8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    if ray.train.get_context().get_world_rank() == 0:
        open(config["stamp"], "w").write(str(time.time()))

ray.init("local", num_cpus=max(2, int(sys.argv[2])), log_to_driver=False, logging_level="ERROR")
TorchTrainer(loop, train_loop_config={"stamp": sys.argv[1]},
             scaling_config=ray.train.ScalingConfig(num_workers=int(sys.argv[2])),
             run_config=ray.train.RunConfig(name="bare", storage_path=sys.argv[3])).fit()
"""


def steps(folder: Path, num_workers: int, num_steps: int) -> dict[str, Any]:
    """Return the seconds per step and the share of waiting of whole runs through the training loop.

    The first steps are left out.
    """
    from cluster.recipe.reading import parse
    from cluster.tracking.journal import read_journal
    from cluster.training.launch import launch

    config = parse(recipe(folder, f"steps-{num_workers}", num_workers, max_steps=num_steps))
    launch(config)
    rows = [row for row in read_journal(RunFolder.of(config).metrics) if "train/loss" in row][num_steps // 4 :]
    seconds = seconds_of_steps(config, rows)
    waits = [row["data/wait_share"] for row in rows]
    return {
        "step_seconds": summary(seconds),
        "wait_share": summary(waits),
        "reduce_share": on_workers(reduce_share, config, num_workers) if num_workers > 1 else 0.0,
    }


def seconds_of_steps(config: Any, rows: list[dict[str, float]]) -> list[float]:
    """Return the seconds of every step, from its metrics."""
    return [config.train.batch_size / row["speed/images_per_second"] for row in rows]


def checkpoint_in_a_run(folder: Path, num_workers: int, num_steps: int, every: int = 10) -> dict[str, Any]:
    """Return the seconds that a checkpoint adds to the step after it, over a whole run of a ResNet-20.

    Compared with the median of the other steps; also the interval, in seconds, of which that is 3 %.
    """
    from cluster.recipe.reading import parse
    from cluster.tracking.journal import read_journal
    from cluster.training.launch import launch
    from kdcore.models import build_model, count_parameters

    data = recipe(folder, f"checkpoints-{num_workers}", num_workers, max_steps=num_steps, epochs=num_steps)
    config = parse(data | {"checkpoint": {"every_steps": every}})
    launch(config)
    rows = [row for row in read_journal(RunFolder.of(config).metrics) if "train/loss" in row][every:]
    seconds = np.array(seconds_of_steps(config, rows))
    after = np.array([row["step"] % every == 1 for row in rows])
    extra = seconds[after] - np.median(seconds[~after])
    return {
        "parameters": count_parameters(build_model(config.student, ("a", "b"))),
        "every_steps": every,
        "step_seconds": summary(seconds[~after].tolist()),
        "extra_seconds": summary(extra.tolist()),
        "interval_seconds_for_3_percent": float(np.median(extra)) / 0.03,
    }


def summary(values: list[float]) -> dict[str, float]:
    """Return n, median and quartiles, since steps have a long tail."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"n": len(values), "median": float(median), "quartile_1": float(low), "quartile_3": float(high)}


def on_workers(function: Callable[[dict[str, Any]], Any], config: Any, num_workers: int) -> Any:
    """Return the result of a function of the payload on rank 0 of a group of workers."""
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory() as storage:
        return (
            TorchTrainer(
                function,
                train_loop_config={"config": config.model_dump(mode="json")},
                scaling_config=ray.train.ScalingConfig(num_workers=num_workers),
                run_config=ray.train.RunConfig(name="measure", storage_path=storage),
            )
            .fit()
            .return_value
        )


def reduce_share(payload: dict[str, Any], rounds: int = 40) -> float:
    """Return the share of a step that averaging the gradients takes.

    1 - (seconds of forward and backward only) / (with the gradients averaged), medians of alternating rounds.
    """
    from cluster.assembly import assemble
    from cluster.rank import Rank
    from cluster.recipe.reading import parse
    from cluster.training.worker import data_parallel

    config, rank = parse(payload["config"]), Rank.of_this_worker()
    run = assemble(config, rank)
    model = data_parallel(run.distiller())
    batch = next(iter(run.train_batches(0)))

    def seconds() -> float:
        started = time.perf_counter()
        model(batch).loss.backward()
        return time.perf_counter() - started

    alone, together = [], []
    for _ in range(rounds):
        torch.distributed.barrier()
        with model.no_sync():
            alone.append(seconds())
        torch.distributed.barrier()
        together.append(seconds())
    return 1 - float(np.median(alone[5:]) / np.median(together[5:]))


def start_seconds(folder: Path, num_workers: int, number: int) -> float:
    """Return the seconds from `python -m ops train` to the end of the first step.

    The MLflow store and the index exist already, as from a second run on.
    """
    import yaml

    from cluster.recipe.reading import parse
    from cluster.tracking.journal import read_journal

    data = recipe(folder, f"start-{num_workers}-{number}", num_workers, max_steps=2)
    path = folder / f"start-{number}.yaml"
    path.write_text(yaml.safe_dump(data))
    started = time.time()
    subprocess.run([sys.executable, "-m", "ops", "train", str(path)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = read_journal(RunFolder.of(parse(data)).metrics)
    return float(rows[0]["time"]) - started


def bare_seconds(folder: Path, num_workers: int, number: int) -> float:
    """Return the same seconds of a Ray Train job that only takes one step of SGD on one linear layer."""
    stamp = folder / f"stamp-{number}"
    started = time.time()
    arguments = [str(stamp), str(num_workers), str(folder / f"bare-{number}")]
    subprocess.run([sys.executable, "-c", BARE, *arguments], check=True, capture_output=True)
    return float(stamp.read_text()) - started


def starts(folder: Path, num_workers: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of both, in turns, after one of each that does not count."""
    pairs = [(start_seconds(folder, num_workers, n), bare_seconds(folder, num_workers, n)) for n in range(rounds + 1)]
    ours, bare = zip(*pairs[1:], strict=True)
    own = [one - other for one, other in pairs[1:]]
    return {"command": spread(list(ours)), "bare": spread(list(bare)), "own_share": spread(own)}


def checkpoint_seconds(repeats: int = 5) -> dict[str, Any]:
    """Return the seconds for which a checkpoint of a ResNet-50 blocks the loop, and those in which it is then written.

    With momentum and a moving average, to a folder on this machine.
    """
    import timm
    from pyarrow.fs import LocalFileSystem
    from timm.utils import ModelEmaV3

    from cluster.training.checkpoint import TrainState
    from kdcore.distiller import Distiller
    from kdcore.terms import parse_term

    student = timm.create_model("resnet50")
    distiller = Distiller(student, [parse_term({"term": "ce", "weight": 1.0})], image_size=(64, 64), num_samples=1)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1, momentum=0.9)
    for parameter in distiller.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = TrainState(distiller, optimizer, ModelEmaV3(student))
    held, written = [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            snapshot = state.snapshot({})
            held.append(time.perf_counter() - started)
            snapshot.write(LocalFileSystem(), folder)
            written.append(time.perf_counter() - started - held[-1])
    return {
        "parameters": sum(p.numel() for p in student.parameters()),
        "held_seconds": spread(held),
        "written_seconds": spread(written),
        "interval_seconds_for_3_percent": float(np.mean(held)) / 0.03,
    }


def main() -> None:
    """Measure checkpoints, starts and steps, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=4, help="of each start (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image_folder(folder / "images")
        found: dict[str, Any] = {"checkpoint": checkpoint_seconds(), "start": starts(folder, 2, args.rounds)}
        found |= measured_steps(folder, args.workers, args.steps)
    path = write("scale", found)
    report(found)
    console.print(f"written: {path}")


def measured_steps(folder: Path, workers: list[int], num_steps: int) -> dict[str, Any]:
    """Return the steps on each number of workers, the share of averaging gradients, and a checkpoint's cost."""
    import ray

    ray.init("local", num_cpus=max(workers), include_dashboard=True, log_to_driver=False, logging_level="ERROR")
    try:
        return {
            "steps": {str(number): steps(folder, number, num_steps) for number in workers},
            "checkpoint_in_a_run": checkpoint_in_a_run(folder, 2, 2 * num_steps),
        }
    finally:
        ray.shutdown()


def report(found: dict[str, Any]) -> None:
    """Print what was measured."""
    columns = ["workers", "step, ms (median)", "quartiles", "data wait", "averaging gradients"]
    rows = [
        [
            number,
            f"{1e3 * row['step_seconds']['median']:.1f}",
            f"{1e3 * row['step_seconds']['quartile_1']:.1f} to {1e3 * row['step_seconds']['quartile_3']:.1f}",
            f"{row['wait_share']['median']:.1%}",
            f"{row['reduce_share']:.1%}",
        ]
        for number, row in found["steps"].items()
    ]
    console.print(table("ResNet-20, 32 pixels, batches of 64 in micro-batches of 16", columns, rows))
    for name, values in found["start"].items():
        console.print(f"{name:<10} {values['mean']:.1f} s ± {values['stdev']:.1f} (n = {values['n']})")
    checkpoint = found["checkpoint"]
    console.print(
        f"a checkpoint of {checkpoint['parameters']:,} parameters holds the loop up for "
        f"{checkpoint['held_seconds']['mean']:.2f} s: 3 % of {checkpoint['interval_seconds_for_3_percent']:.0f} s; "
        f"written beside it in {checkpoint['written_seconds']['mean']:.2f} s"
    )
    small = found["checkpoint_in_a_run"]
    console.print(
        f"one of a ResNet-20 in a run on 2 workers: {1e3 * small['extra_seconds']['median']:.0f} ms (median of "
        f"{small['extra_seconds']['n']}) beside steps of {1e3 * small['step_seconds']['median']:.0f} ms: 3 % of "
        f"{small['interval_seconds_for_3_percent']:.1f} s"
    )


if __name__ == "__main__":
    main()

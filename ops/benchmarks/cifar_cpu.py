"""The start of training on CIFAR-100 without a GPU: resnet56 teaches resnet20, equal steps for every method.

The recipes' networks, batches, losses and optimiser, a constant rate, and as many steps as the minutes allow: a small
part of the 240 epochs. What comes out says how fast the methods begin to learn, not where they end.

    python -m ops.benchmarks.cifar_cpu --teacher cifar100_resnet56.safetensors --minutes 30
"""

from __future__ import annotations

import argparse
import time
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from cluster.config import RunConfig
from ops import catalog
from ops.benchmarks.cifar100 import run_name, run_slice, runs_of, summary, text
from ops.benchmarks.facts import write
from ops.benchmarks.lanes import Lane
from ops.console import console, say, table

PAIR = "cifar100/resnet56-resnet20"
ROWS = {
    "alone": "cifar100/resnet20/alone",
    "kd": f"{PAIR}/kd",
    "wttm": f"{PAIR}/wttm",
    "simkd": f"{PAIR}/simkd",
}
EVALUATION_STEPS = 30  # an evaluation of the test set costs about as much; only a plan of the time depends on it


def configure(row: str, seed: int, args: Namespace, steps: int) -> RunConfig:
    """A row's recipe, cut to so many steps."""
    changes = [
        f"name={run_name(row, seed)}",
        f"seed={seed}",
        f"output_dir={args.state}",
        f"data.root={args.data}",
        "data.loader=resident",
        "schedule={sched: constant}",
        f"train.max_steps={steps}",
        "scaling.num_workers=0",
    ]
    if row != "alone":
        changes.append(f"teacher.checkpoint={args.teacher}")
    return catalog.load(ROWS[row], changes)


def affordable_steps(args: Namespace, probe: int = 3) -> int:
    """How many steps each run may take: every method's step is timed, after one that is not."""
    total = 0.0
    with TemporaryDirectory() as folder:
        for row in ROWS:
            lane = Lane(configure(row, 0, Namespace(**{**vars(args), "state": folder}), 1000), torch.device("cpu"))
            lane.step()
            started = time.perf_counter()
            for _ in range(probe):
                lane.step()
            total += (time.perf_counter() - started) / probe
    return max(1, int(args.minutes * 60 / (total * args.num_seeds)) - EVALUATION_STEPS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="weights of resnet56, a file of tensors")
    parser.add_argument("--data", default="data/cifar100", help="image folder (%(default)s)")
    parser.add_argument("--state", default="outputs/cifar-cpu", help="folder of runs (%(default)s)")
    parser.add_argument("--minutes", type=float, default=30.0, help="of all runs together (%(default)s)")
    parser.add_argument("--num-seeds", type=int, default=3)
    args = parser.parse_args()
    remembered = Path(args.state) / "steps"
    if not remembered.exists():  # else a slice before this one has decided
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(str(affordable_steps(args)))
    steps = int(remembered.read_text())
    say(f"{steps} steps of 64 images for each of {len(ROWS) * args.num_seeds} runs")
    places = [(row, seed) for seed in range(args.num_seeds) for row in ROWS]
    how = Namespace(state=args.state, minutes=args.minutes, side_by_side=1, device="cpu", commit=None)
    run_slice(places, lambda row, seed: configure(row, seed, args, steps), how, with_teacher=False)
    report(args, steps)


def report(args: Namespace, steps: int) -> None:
    """results/cifar_cpu.json, and the table."""
    rows = {row: summary(runs_of(Path(args.state), row)) for row in ROWS}
    about = {"steps": steps, "epochs": steps / (50_000 // 64), "pair": PAIR, "schedule": "constant rate 0.05"}
    path = write("cifar_cpu", {**about, "threads": torch.get_num_threads(), "rows": rows})
    title = f"resnet56 > resnet20, {steps} steps = {about['epochs']:.2f} of 240 epochs, top-1 on 10,000 test images"
    console.print(table(title, ["row", "runs", "top-1", "seconds a run"], [line(*row) for row in rows.items()]))
    say(f"written: {path}")


def line(row: str, found: dict[str, Any]) -> list[str]:
    seconds = [run["train_seconds"] for run in found["runs"] if run["finished"]]
    mean = f"{sum(seconds) / len(seconds):.0f}" if seconds else "-"
    return [row, str(len(seconds)), text(found["top1"]["last"]), mean]


if __name__ == "__main__":
    main()

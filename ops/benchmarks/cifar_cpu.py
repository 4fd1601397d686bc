"""The start of training on CIFAR-100 without a GPU: resnet56 teaches resnet20, equal steps for every method.

The recipes' networks, batches, losses and optimiser, a constant rate, and as many steps as the minutes allow: a small
part of the 240 epochs. All runs take turns by the step, so that all have taken as many when the time is over, and those
of one seed share their batches and their teacher's answers; the same command again goes on. What comes out says how
fast the methods begin to learn, not where they end.

    python -m ops.benchmarks.cifar_cpu --teacher cifar100_resnet56.safetensors --minutes 30
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from typing import Any

import torch

from cluster.config import RunConfig
from ops import catalog
from ops.benchmarks.facts import write
from ops.console import console, say, table
from ops.reproduce.cifar100 import run_name, summary, text
from ops.reproduce.lanes import Lane, take_turns

PAIR = "cifar100/resnet56-resnet20"
ROWS = {
    "alone": "cifar100/resnet20/alone",
    "kd": f"{PAIR}/kd",
    "wttm": f"{PAIR}/wttm",
    "simkd": f"{PAIR}/simkd",
}


def configure(row: str, seed: int, args: Namespace) -> RunConfig:
    """Return a row's recipe, at a constant rate."""
    changes = [
        f"name={run_name(row, seed)}",
        f"seed={seed}",
        f"output_dir={args.state}",
        f"data.root={args.data}",
        "data.loader=resident",
        "schedule={sched: constant}",
        "scaling.num_workers=0",
    ]
    if row != "alone":
        changes.append(f"teacher.checkpoint={args.teacher}")
    return catalog.load(ROWS[row], changes)


def main() -> None:
    """Train all rows by turns while the minutes last, and write and print how far they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="weights of resnet56, a file of tensors")
    parser.add_argument("--data", default="data/cifar100", help="image folder (%(default)s)")
    parser.add_argument("--state", default="outputs/cifar-cpu", help="folder of runs (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of training; evaluation comes on top (%(default)s)"
    )
    parser.add_argument("--num-seeds", type=int, default=3)
    args = parser.parse_args()
    seeds, device = range(args.num_seeds), torch.device("cpu")
    lanes = {row: [Lane(configure(row, seed, args), device) for seed in seeds] for row in ROWS}
    every = [lane for row in lanes.values() for lane in row]
    say(f"{len(every)} runs take turns for {args.minutes:g} minutes")
    take_turns(iter(every), len(every), 60 * args.minutes, lambda lane: None)
    report({row: summary([results_so_far(lane) for lane in some]) for row, some in lanes.items()})


def results_so_far(lane: Lane) -> dict[str, Any]:
    """Return a run as it stands: its steps, and its metrics on every test image."""
    now = lane.evaluate() | {"epoch": lane.state.step / lane.run.steps_per_epoch}
    about = {"name": lane.config.name, "steps": lane.state.step, "train_seconds": lane.state.train_seconds}
    return about | {"finished": True, "last": now, "best": now}


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Write results/cifar_cpu.json and print the table."""
    run = rows["alone"]["runs"][0]
    about = {"steps": run["steps"], "epochs": run["last"]["epoch"], "pair": PAIR, "schedule": "constant rate of 0.05"}
    about["minutes"] = sum(run["train_seconds"] for row in rows.values() for run in row["runs"]) / 60
    path = write("cifar_cpu", {**about, "threads": torch.get_num_threads(), "rows": rows})
    say(f"{PAIR}: {about['steps']} steps of 64 images, {about['epochs']:.2f} of 240 epochs; on all test images")
    shown = [[row, str(len(found["runs"])), text(found["top1"]["last"])] for row, found in rows.items()]
    console.print(table("", ["row", "runs", "top-1"], shown))
    say(f"written: {path}")


if __name__ == "__main__":
    main()

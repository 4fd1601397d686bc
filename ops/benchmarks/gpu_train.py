"""What `train.cuda_graph` gains in a whole run, with its loader, log, validations and checkpoints.

Not here: the step by itself (`ops.benchmarks.gpu`).
"""

from __future__ import annotations

import json
import statistics
from typing import Any

from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from cluster.training.launch import launch
from ops.benchmarks.gpu_bench import PAIRS, Bench

TURNS = 3  # runs of each way
EPOCHS = 16  # of 1,024 small images: 256 steps
WAYS = {"launched": False, "graph": True}


def train(bench: Bench) -> dict[str, Any]:
    """Compare milliseconds per step of runs whose kernels are launched with runs that replay a graph, in turns.

    same_losses: whether every logged step has the same loss, to the bit, in all of them.
    """
    pair = next(iter(PAIRS))
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: set[tuple[float, ...]] = set()
    for turn in range(TURNS):
        for way, cuda_graph in WAYS.items():
            settings = {"epochs": EPOCHS, "cuda_graph": cuda_graph and bench.device.type == "cuda"}
            config = bench.recipe(pair, name=f"{way}-{turn}", train=settings, tracking={"every_steps": 1})
            result = launch(config)
            found[way].append(1000 * result.train_seconds / result.steps)
            losses.add(logged_losses(config))
    timings = {way: {"median": statistics.median(v), "range": [min(v), max(v)]} for way, v in found.items()}
    return {pair: {**timings, "same_losses": len(losses) == 1}}


def logged_losses(config: RunConfig) -> tuple[float, ...]:
    """Return the losses in a run's journal, in the order of its steps."""
    rows = [json.loads(line) for line in RunFolder.of(config).metrics.read_text().splitlines()]
    return tuple(row["train/loss"] for row in rows if "train/loss" in row)

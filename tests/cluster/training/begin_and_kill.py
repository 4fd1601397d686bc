"""Training that is killed and continued: for `test_kill_on_every_kind`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from kdcore.distiller import StepOutput

STEPS, SAVED_AT, KILLED_AT = 16, 4, 7  # of 6 an epoch


def train(recipe: dict[str, Any], folder: Path, kill: bool) -> None:
    """Train from the checkpoint where there is one, each step's losses and images into a file; die where asked to."""
    run = assemble(parse(recipe), Rank(0, 1, torch.device("cpu")))
    state = new_state(run)
    if (folder / "checkpoint").exists():
        state.restore(folder / "checkpoint", checkpoint_facts(run))
    loop, batches = TrainingLoop(run, state), run.train_batches(state.step)
    with (folder / "steps.jsonl").open("a") as file:
        while state.step < STEPS:
            seen: list[Any] = []
            number = loop.step(batches, partial(note, seen)).step
            file.write(json.dumps([number, *seen]) + "\n")
            file.flush()
            if state.step % SAVED_AT == 0 and not (folder / "checkpoint").exists():
                (folder / "checkpoint").mkdir()
                state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(folder / "checkpoint"))
            if kill and state.step == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)


def note(seen: list[Any], _number: int, batch: Batch, output: StepOutput) -> None:
    """Add what a micro-batch was, and what it gave."""
    seen.extend((output.loss.item(), float(batch.images.sum())))


def train_in(environment: Mapping[str, str], recipe: dict[str, Any], folder: Path, kill: bool) -> None:
    """Train in this process, which has one thread, and the environment of the test that has forked it."""
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    train(recipe, folder, kill)

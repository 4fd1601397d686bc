"""Runs that are killed and continued, each in a process of its own: for `test_kill_on_every_kind`.

One process reads the libraries and forks another for every start, so that a start takes no seconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import assemble, checkpoint_facts
from cluster.rank import Rank
from cluster.recipe import parse
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


def in_a_process(recipe: dict[str, Any], folder: Path, kill: bool) -> int:
    """Return how a process ended that trained: negative, the signal that killed it."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        train(recipe, folder, kill)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    from nvidia.dali import fn, types  # noqa: F401  which the loader would import in every process

    for line in sys.stdin:
        words = json.loads(line)
        ends = [in_a_process(words["recipe"], Path(words["folder"]), kill) for kill in (True, False)]
        print(json.dumps(ends), flush=True)

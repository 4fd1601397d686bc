"""One rank of a training run on Ray: the loop's steps with recording, validation and checkpoints around them.

Not here: what a step is (`cluster.training.loop`), what is recorded (`cluster.training.recorder`), and how ranks are
started (`cluster.training.launch`).
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from torch import nn

from cluster.assembly import Assembly, assemble, checkpoint_facts
from cluster.config import RunConfig
from cluster.rank import Rank, set_up_torch
from cluster.recipe import parse
from cluster.training.checkpoint import Snapshot, TrainState, name_of
from cluster.training.loop import ForwardBackward, TrainingLoop, ends_epoch, new_state
from cluster.training.progress import Reporter
from cluster.training.recorder import Recorder, Validation
from cluster.training.recovery import with_place


def train_worker(payload: dict[str, Any]) -> dict[str, Any]:
    """Train to the last step, from the latest checkpoint if there is one; return the run's final metrics (rank 0's)."""
    config, rank = parse(payload["config"]), Rank.of_this_worker()
    set_up_torch(config.train.deterministic)
    reporter = Reporter(payload["board"], rank.number, config.name, payload.get("watch"))
    reporter.begin()
    reporter.update(phase="building networks")
    run = assemble(config, rank, reuse_index=True)
    state = new_state(run)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as directory:
            state.restore(Path(directory), checkpoint_facts(run))
        reporter.say(f"continuing at step {state.step} of {run.total_steps}, workers: {rank.world_size}")
    model = data_parallel(config, state.distiller)
    no_sync = model.no_sync if rank.world_size > 1 else contextlib.nullcontext
    step_model = torch.compile(model) if config.train.compile else model
    loop = TrainingLoop(run, state, ForwardBackward(run, step_model, no_sync))
    recorder = Recorder(config, run, state.step, reporter)
    validation, checkpoints = Validation(run, recorder), Checkpoints(run)

    batches = recorder.timed(run.train_batches(state.step))
    with with_place(lambda: f"rank {rank.number}, step {state.step + 1} of {run.total_steps}", reporter.fail):
        while not loop.is_done:
            with recorder.timing(state):
                record = loop.step(batches, partial(recorder.count, state.step))
            is_validated = ends_epoch(state.step, run, config.train.evaluate_every_epochs)
            is_saved = checkpoint_is_due(state.step, run)
            if is_validated or is_saved:
                loop.watch.verify_weights()
            elif recorder.interval_ends(state.step):
                loop.watch.verify()
            recorder.after_step(state, record)
            if is_validated:
                validation.evaluate(state)
            if is_saved:
                checkpoints.save(state)
    if not validation.latest:  # continued after its last step
        validation.evaluate(state)
    return recorder.finish(state, validation)


def data_parallel(config: RunConfig, distiller: nn.Module) -> Any:
    """Wrap the distiller so that its gradients are averaged over the ranks.

    Left to itself, DDP regroups its buckets after the first step that a process takes; with 4 ranks and more, the order
    of a sum depends on where in a bucket a gradient lies, so a continued run would add up in another order than an
    undisturbed one. Searching for unused parameters is what keeps the first grouping.
    """
    options = {"broadcast_buffers": False, "find_unused_parameters": config.train.deterministic}
    return ray.train.torch.prepare_model(distiller, move_to_device=False, parallel_strategy_kwargs=options)


def checkpoint_is_due(step: int, run: Assembly) -> bool:
    if run.config.scaling.num_workers == 0:
        return False  # Ray Train writes none of a run in this process, and `Checkpoints` would wait for it
    every = run.config.checkpoint.every_steps or run.steps_per_epoch
    return step == run.total_steps or step % every == 0


class Checkpoints:
    """Has rank 0's state written in the background and hands it to Ray Train; every rank takes part.

    The loop waits only for a copy in the host's memory, and for the writing of the one before if that is not done:
    there is never more than one copy.
    """

    def __init__(self, run: Assembly) -> None:
        self.run = run
        self.written = threading.Event()
        self.written.set()

    def save(self, state: TrainState) -> None:
        checkpoint, write, name = None, None, name_of(state.step)
        if self.run.rank.first:
            self.written.wait()
            self.written.clear()
            checkpoint = Checkpoint(f"{self.run.config.storage}/{self.run.config.name}/{name}")
            write = partial(self.write, state.snapshot(checkpoint_facts(self.run)))
        ray.train.report(
            {"step": state.step},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )

    def write(self, snapshot: Snapshot, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Write a checkpoint: called by Ray Train in a thread, whose error ends the worker."""
        try:
            snapshot.write(checkpoint.filesystem, checkpoint.path)
        finally:
            self.written.set()
        return checkpoint

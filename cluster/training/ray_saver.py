"""Saving a run's checkpoints by Ray Train, alongside the training.

Not here: which of them a run goes on from, and how a run in one process saves them (`cluster.training.saving`).
"""

from __future__ import annotations

import threading
from functools import partial

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

from cluster.assembly import Assembly
from cluster.training.checkpoint import Snapshot, TrainState, checkpoint_facts, name_of
from cluster.training.checkpoint_files import checkpoint_place


class RaySaver:
    """Has rank 0's state written in the background and hands it to Ray Train.

    The loop waits only for a copy in the host's memory, and for the previous one to be written if it is not yet: there
    is never more than one copy.
    """

    def __init__(self, run: Assembly) -> None:
        self.run = run
        self.written = threading.Event()
        self.written.set()

    def save(self, state: TrainState) -> None:
        """Copy the state, and let Ray Train have it written and listed."""
        checkpoint, write, name = None, None, name_of(state.step)
        if self.run.rank.first:
            self.written.wait()
            self.written.clear()
            filesystem, folder = checkpoint_place(self.run.config.storage, self.run.config.name)
            checkpoint = Checkpoint(f"{folder}/{name}", filesystem)
            write = partial(self.write, state.snapshot(checkpoint_facts(self.run)))
        ray.train.report(
            {"step": state.step},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=write,
            delete_local_checkpoint_after_upload=False,
        )

    def finish(self) -> None:
        """Wait until what was saved is written."""
        self.written.wait()

    def write(self, snapshot: Snapshot, checkpoint: Checkpoint, name: str) -> Checkpoint:
        """Write a checkpoint: called by Ray Train in a thread, whose error ends the worker."""
        try:
            snapshot.write(checkpoint.filesystem, checkpoint.path)
        finally:
            self.written.set()
        return checkpoint

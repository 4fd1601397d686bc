"""Saving and finding a run's checkpoints: by Ray Train alongside the training, or by the one process that trains.

Both write the same two files into the same folders, so a run that one of them began is continued by the other.

Not here: what a checkpoint holds (`cluster.training.checkpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly
from cluster.recipe.config import RunConfig
from cluster.training.checkpoint import (
    TrainState,
    checkpoint_facts,
    checkpoint_up_to,
    name_of,
    saved_checkpoints,
    step_of,
    whole_checkpoints,
)
from cluster.training.checkpoint_files import checkpoint_place, refusing_silence
from pipelines.files import make_folder


class Saver(Protocol):
    """Saves the state of a run; every rank takes part."""

    def save(self, state: TrainState) -> None:
        """Save the state as the checkpoint of its step."""

    def finish(self) -> None:
        """Wait until what was saved is written."""


def saver_of(run: Assembly) -> Saver:
    """Return the saver of a run's checkpoints: Ray Train's, or this process's own."""
    if run.config.scaling.num_workers == 0:
        return LocalSaver(run)
    from cluster.training.ray_saver import RaySaver  # only here: a run in one process has no Ray

    return RaySaver(run)


class LocalSaver:
    """Writes the state in the process that trains, and removes what is older than the recipe keeps.

    Ray Train writes no checkpoint of a run that it has no workers for.
    """

    def __init__(self, run: Assembly) -> None:
        self.run = run

    def save(self, state: TrainState) -> None:
        """Write the state, then remove the oldest checkpoints beyond `checkpoint.keep`."""
        config = self.run.config
        filesystem, path = checkpoint_place(config.storage, config.name)
        state.snapshot(checkpoint_facts(self.run)).write(filesystem, f"{path}/{name_of(state.step)}")
        self.remove_old()

    def finish(self) -> None:
        """Remove what a kill has left of older checkpoints, where the run had no more to save."""
        self.remove_old()

    def remove_old(self) -> None:
        """Remove all checkpoints, whole or cut off, that are older than the newest `checkpoint.keep` whole ones."""
        config = self.run.config
        filesystem, _ = checkpoint_place(config.storage, config.name)
        kept = whole_checkpoints(config)[-config.checkpoint.keep :]
        for old in saved_checkpoints(config):
            if kept and old.step < kept[0].step:
                filesystem.delete_dir(old.path)


def newest_step(config: RunConfig) -> int | None:
    """Return the step of the newest whole checkpoint of a run, None for none; make the folder for checkpoints.

    Refused where checkpoints cannot be kept: that is known before the first step, not at the first checkpoint.
    """
    with refusing_silence(config.storage):
        filesystem, path = checkpoint_place(config.storage, config.name)
        if isinstance(filesystem, LocalFileSystem):
            make_folder(Path(path), "checkpoint.storage")
        found = whole_checkpoints(config)
    return found[-1].step if found else None


@contextmanager
def latest_checkpoint(config: RunConfig, newest: int | None) -> Iterator[tuple[Path, str] | None]:
    """Give the folder of the checkpoint that this rank goes on from, and its place; None where the run begins.

    It is Ray Train's, which knows what was saved since the run was started, or the one of `newest` steps, which the
    driver found before: of a run whose earlier part ran without Ray. All ranks take the same one.
    """
    listed = None
    if config.scaling.num_workers:
        import ray.train

        listed = ray.train.get_checkpoint()
    if listed is not None and (newest is None or (step_of(Path(listed.path).name) or 0) >= newest):
        with listed.as_directory() as directory:
            yield Path(directory), listed.path
    elif newest is not None:
        with checkpoint_up_to(config, newest) as found:
            yield found
    else:
        yield None

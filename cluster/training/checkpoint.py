"""Checkpoints: everything a run needs to go on at its very next step, as tensors and plain values only.

A directory with `state.pt` (loaded with weights_only) and `student.safetensors` (the student as it stands, or its
moving average). There is no random state: every random number of a run is a function of the seed and the step.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem, copy_files
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from cluster.assembly import Assembly
from cluster.images import image_facts
from cluster.recipe.config import RunConfig
from cluster.training.checkpoint_files import STATE, STUDENT, checkpoint_place, is_whole, refusing_silence
from cluster.training.readable import KEEP, refuse_unreadable, unread_types
from kdcore.checkpoints import to_safetensors
from kdcore.distiller import Distiller
from kdcore.errors import Refused, one_line
from pipelines.files import is_lasting, not_written, sync
from pipelines.nested import flat, in_short

# What helps where another fact than files and fields has changed.
OF_FACTS = {"micro_batch": "start again with train.micro_batch or, where it is open, scaling.num_workers as it was"}


@dataclass
class TrainState:
    """What changes while a run trains.

    step: the number of optimiser steps done. interval: what was added up since the last row of metrics
    (`cluster.training.interval`). best: the student's best weights so far with their score, their step, and all their
    metrics, where the recipe chooses by score.
    """

    distiller: Distiller
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    step: int = 0
    train_seconds: float = 0.0
    skipped_steps: int = 0
    interval: list[float] = field(default_factory=list)
    best_score: float = -1.0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    best_student: dict[str, Tensor] | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and deployed: the moving average where there is one."""
        return self.ema.module if self.ema else self.distiller.student

    def offer_best(self, score: float, metrics: Mapping[str, float]) -> None:
        """Keep a copy of the evaluated weights if the score is above every earlier one, with all that was measured."""
        if score > self.best_score:
            self.best_score, self.best_step, self.best_metrics = score, self.step, dict(metrics)
            self.best_student = {
                name: tensor.detach().to("cpu", copy=True).contiguous()
                for name, tensor in self.evaluated.state_dict().items()
            }

    def deployed(self) -> dict[str, Tensor]:
        """Return the weights to deploy: the best where the recipe chooses, else the last."""
        if self.best_student is not None:
            return self.best_student
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.evaluated.state_dict().items()}

    def snapshot(self, facts: dict[str, Any]) -> Snapshot:
        """Copy the state into the host's memory, to be written while training goes on.

        facts: plain values kept with the tensors (fingerprints). Refused where it could not be read again.
        """
        self.refuse_unreadable()
        # The best student is replaced as a whole, never changed.
        return Snapshot(on_host({**self.contents(), "facts": facts}) | {"best_student": self.best_student})

    def contents(self) -> dict[str, Any]:
        """Return what a checkpoint holds, without its facts and the best student."""
        return {
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "step": self.step,
            "train_seconds": self.train_seconds,
            "best_score": self.best_score,
            "best_step": self.best_step,
            "best_metrics": self.best_metrics,
            "skipped_steps": self.skipped_steps,
            "interval": self.interval,
        }

    def refuse_unreadable(self) -> None:
        """Refuse a state that a checkpoint could hold, but that could not be read from it."""
        for name, part in self.contents().items():
            owner = f"optimizer {type(self.optimizer).__name__}" if name == "optimizer" else f"the run's {name}"
            refuse_unreadable(owner, part)

    def restore(self, directory: Path, facts: dict[str, Any], place: str | None = None) -> None:
        """Take the state of a checkpoint; Refused where its facts (data, views, weights) are not this run's.

        place: where the checkpoint is kept, if the directory is a copy of it.
        """
        saved = read_state(directory, place)
        theirs, ours = flat(saved["facts"]), flat(facts)
        for name in sorted(ours.keys() & theirs.keys()):  # a checkpoint of an earlier version may know fewer
            if theirs[name] != ours[name]:
                remedy = OF_FACTS.get(name, "restore what has changed")
                raise Refused(
                    f"checkpoint {place or directory}: its {name} is {in_short(theirs[name])}, this run's is "
                    f"{in_short(ours[name])}; {remedy}, or give the run another name to start afresh"
                )
        self.distiller.load_state_dict(saved["distiller"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.ema:
            self.ema.module.load_state_dict(saved["ema"])
        self.step, self.train_seconds = saved["step"], saved["train_seconds"]
        self.skipped_steps = saved.get("skipped_steps", 0)  # checkpoints from before steps could be left out
        self.interval = saved.get("interval", [])  # checkpoints from before a row could span one
        self.best_score, self.best_student = saved["best_score"], saved["best_student"]
        self.best_step, self.best_metrics = saved.get("best_step", 0), saved.get("best_metrics", {})


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds. state: of `TrainState`, in the host's memory."""

    state: dict[str, Any]

    @property
    def student(self) -> dict[str, Tensor]:
        """The weights of the network that is evaluated."""
        prefix = "student."
        whole = self.state["distiller"]
        return self.state["ema"] or {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}

    def write(self, filesystem: FileSystem, directory: str) -> None:
        """Write both files into the directory of a folder or an object store. Refused where it does not take them.

        In a folder, they are on the disk when this returns: earlier checkpoints are removed then.
        """
        try:
            filesystem.create_dir(directory)
            with filesystem.open_output_stream(f"{directory}/{STATE}") as file:
                torch.save(self.state, file)
            with filesystem.open_output_stream(f"{directory}/{STUDENT}") as file:
                file.write(to_safetensors(self.student))
            if isinstance(filesystem, LocalFileSystem):
                folder = Path(directory)
                for path in (folder / STATE, folder / STUDENT, folder, folder.parent):
                    sync(path)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter on top of the disk's error
            cause = error if isinstance(error, OSError) else error.__context__
            if isinstance(cause, OSError) and is_lasting(cause):
                raise Refused(not_written(Path(directory), cause)) from error
            raise


def read_state(directory: Path, place: str | None = None) -> dict[str, Any]:
    """Return the contents of a checkpoint's state file; place: as of `restore`. Refused where it is damaged."""
    try:
        state: dict[str, Any] = torch.load(directory / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
        if isinstance(error, pickle.UnpicklingError) and (types := unread_types(directory / STATE)):
            raise Refused(
                f"checkpoint {place or directory}: its {STATE} is whole, but holds {', '.join(types)}, and files "
                f"with such objects are not read, as they can run code; {KEEP} in the optimiser's state "
                "and in get_extra_state, and give the run another name to start afresh"
            ) from error
        # What torch says of a pickle is how to read it nonetheless.
        reason = "no pickle" if isinstance(error, pickle.UnpicklingError) else one_line(error, 100)
        raise Refused(
            f"checkpoint {place or directory}: its {STATE} is damaged ({reason}); delete that folder, and the same "
            "command goes on from the checkpoint before it"
        ) from error
    return state


@dataclass(frozen=True)
class SavedCheckpoint:
    """A whole checkpoint: the optimiser steps done, and its folder's path in the store."""

    step: int
    path: str


def whole_checkpoints(config: RunConfig) -> list[SavedCheckpoint]:
    """Return the checkpoints of a run that were written to their end, the oldest first."""
    filesystem, _ = checkpoint_place(config.storage, config.name)
    # The student is written last, and a removal may have begun with either file: one that lacks a file is cut off.
    return [one for one in saved_checkpoints(config) if is_whole(filesystem, one.path)]


def saved_checkpoints(config: RunConfig) -> list[SavedCheckpoint]:
    """Return the checkpoints of a run, including those that a kill has cut off, the oldest first."""
    filesystem, path = checkpoint_place(config.storage, config.name)
    found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    saved = [SavedCheckpoint(step, i.path) for i in found if (step := step_of(i.base_name)) is not None]
    return sorted(saved, key=lambda one: one.step)


@contextmanager
def checkpoint_up_to(config: RunConfig, step: int) -> Iterator[tuple[Path, str] | None]:
    """Give the folder of a run's newest checkpoint of at most `step` steps, and its place; None where there is none.

    One in an object store is copied to a temporary folder, which is gone afterwards; its place is in the store.
    """
    with refusing_silence(config.storage):
        filesystem, _ = checkpoint_place(config.storage, config.name)
        earlier = [one for one in whole_checkpoints(config) if one.step <= step]
    if not earlier:
        yield None
    elif isinstance(filesystem, LocalFileSystem):
        yield Path(earlier[-1].path), earlier[-1].path
    else:
        with tempfile.TemporaryDirectory() as copy:
            copy_files(earlier[-1].path, copy, source_filesystem=filesystem, destination_filesystem=LocalFileSystem())
            yield Path(copy), earlier[-1].path


def name_of(step: int) -> str:
    """Return the name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """Return the steps that a checkpoint's name says; None for another name."""
    number = name.removeprefix("step-")
    return int(number) if name.startswith("step-") and number.isdecimal() else None


def on_host(tree: Any) -> Any:
    """Copy nested dictionaries and lists, with their tensors in the host's memory."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: on_host(value) for key, value in tree.items()}
    return [on_host(value) for value in tree] if isinstance(tree, list) else tree


def checkpoint_facts(run: Assembly) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be continued: nested plain values."""
    return {
        **image_facts(run.indexes),
        "views": run.plan.fingerprint,
        "micro_batch": run.micro_batch,
        "total_steps": run.total_steps,
        **run.starting_facts,
    }

"""The bytes of a recipe's networks and training state, which are built here, on the CPU, without weights or images.

Not here: the number of images and the speed of a worker (`ops.capacity.workload`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pyarrow.fs import LocalFileSystem
from torch import Tensor, nn

from cluster.assembly import Assembly, assemble
from cluster.images import image_size
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_cache
from cluster.recipe.sections import TeacherConfig
from cluster.rehearsal import stand_in
from cluster.training.checkpoint import TrainState
from cluster.training.loop import make_ema
from kdcore.configs import ModelConfig
from kdcore.distiller import Distiller
from kdcore.online_teacher import OnlineTeacher
from kdcore.optim import build_optimizer
from kdcore.rehearsal import rehearse
from pipelines.cache.columns import columns_for
from pipelines.cache.rows import row_bytes
from pipelines.data.source import Source

Network = TypeVar("Network", bound=ModelConfig)

REHEARSED = 2  # images of the step whose saved tensors are counted
COPIES = 5  # of a checkpoint: the first ones wait for memory, as they do in a run


@dataclass(frozen=True)
class Sizes:
    """What one worker holds, in bytes, and the size and times of a checkpoint.

    weights_bytes: of the student and what is trained with it; gradient_bytes: of their parameters that are trained,
    which is also what the workers average; activation_bytes: tensors that one micro-batch keeps for its backward pass,
    in float32; cached_bytes: of the teachers' outputs for one view of an image; checkpoint_seconds: how long a
    checkpoint blocked the steps here; write_seconds: how long it was then written, during the steps.
    """

    trained_parameters: int
    weights_bytes: int
    teacher_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    ema_bytes: int
    activation_bytes: int
    cached_bytes: int
    checkpoint_bytes: int
    checkpoint_seconds: float
    write_seconds: float

    @property
    def memory_bytes(self) -> int:
        """Bytes of a worker. The gradients count once: they lie in the buckets that DDP averages."""
        state = self.weights_bytes + self.teacher_bytes + self.optimizer_bytes + self.ema_bytes
        return state + self.gradient_bytes + self.activation_bytes


def measure_sizes(config: RunConfig, num_images: int, num_classes: int) -> Sizes:
    """Build a recipe's training state for images that need not be here, and count its bytes."""
    images = {"train": stand_in_images(num_images, num_classes)}
    run = assemble(without_weights(config), Rank(0, 1, torch.device("cpu")), indexes=images)
    distiller = run.distiller(stand_in(run))
    trained = [parameter for parameter in distiller.parameters() if parameter.requires_grad]
    activation_bytes = saved_bytes(run, distiller) * config.micro_batch // REHEARSED
    state = TrainState(distiller, build_optimizer(config.optimizer, distiller), make_ema(config, run.student))
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()  # creates the optimiser's state
    if config.train.select != "last":
        state.offer_best(0.0, {})
    kept = [value for values in state.optimizer.state.values() for value in values.values()]
    teachers = teacher_networks(config, run)
    return Sizes(
        trained_parameters=sum(parameter.numel() for parameter in trained),
        weights_bytes=num_bytes(distiller.state_dict().values()),
        teacher_bytes=sum(
            num_bytes(network.state_dict().values()) for teacher, network in teachers if not is_cached(teacher)
        ),
        gradient_bytes=num_bytes(trained),
        optimizer_bytes=num_bytes(value for value in kept if isinstance(value, Tensor)),
        ema_bytes=num_bytes(state.ema.module.state_dict().values()) if state.ema else 0,
        activation_bytes=activation_bytes,
        cached_bytes=sum(row_bytes_read(*teacher, num_classes) for teacher in teachers if is_cached(teacher[0])),
        **write_checkpoint(state),
    )


def without_weights(config: RunConfig) -> RunConfig:
    """Return a recipe whose networks start from random weights and whose teachers run online."""

    def of(network: Network) -> Network:
        bare = network.resolved().without_files()
        return bare.model_copy(update={"source": "online"}) if isinstance(bare, TeacherConfig) else bare

    return config.model_copy(
        update={
            "student": of(config.student),
            "teacher": config.teacher and of(config.teacher),
            "teachers": tuple(of(member) for member in config.teachers),
            "data": config.data.model_copy(update={"sampling": "images", "window_shards": None}),
        }
    )


def stand_in_images(num_images: int, num_classes: int) -> Source:
    """Return an index of images that cannot be read: it has only their number and their labels."""
    labels = np.arange(num_images, dtype=np.int32) % num_classes
    classes = tuple(str(number) for number in range(num_classes))
    return Source("images that are not here", classes, pa.table({"label": pa.array(labels)}))


def saved_bytes(run: Assembly, distiller: Distiller) -> int:
    """Return the bytes that autograd keeps for a forward pass of `REHEARSED` images, except weights."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*distiller.parameters(), *distiller.buffers()]}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    seen = run.for_teacher
    theirs = None if seen is run else image_size(seen.config)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rehearse(distiller, image_size(run.config), REHEARSED, run.config.views.mixes, teacher_size=theirs)
    return sum(found.values())


def teacher_networks(config: RunConfig, run: Assembly) -> list[tuple[RunConfig, nn.Module]]:
    """Return each teacher's own recipe, as it was before `without_weights`, with its network."""
    pairs = zip(config.teacher_recipes, run.teachers.members.values(), strict=True)
    return [(recipe, teacher.model) for recipe, teacher in pairs if isinstance(teacher, OnlineTeacher)]


def is_cached(config: RunConfig) -> bool:
    """Return whether the only teacher of a recipe answers from a cache."""
    return config.teacher is not None and config.teacher.cached


def row_bytes_read(config: RunConfig, network: nn.Module, num_classes: int) -> int:
    """Return the bytes of a cache that a recipe with one teacher reads for one view of an image."""
    cache, size = require_cache(config.cache, config.views), image_size(config.for_teacher)
    shapes = OnlineTeacher(network, config.needs).taps.shapes(size)
    columns = columns_for(config.needs, {tap: tuple(shape) for tap, shape in shapes.items()}, num_classes, size, cache)
    return row_bytes(columns)


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write_checkpoint(state: TrainState) -> dict[str, Any]:
    """Copy a checkpoint `COPIES` times, and write it to a temporary folder here; return its bytes and seconds."""
    copied = []
    for _ in range(COPIES):
        started = time.perf_counter()
        snapshot = state.snapshot({})
        copied.append(time.perf_counter() - started)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        snapshot.write(LocalFileSystem(), folder)
        return {
            "checkpoint_bytes": sum(file.stat().st_size for file in Path(folder).iterdir()),
            "checkpoint_seconds": median(copied),
            "write_seconds": time.perf_counter() - started,
        }

"""What one process does to fill a teacher cache: a piece at a time, through the data path of training.

A batch of a build is fixed by its unit, never by where or when it runs, so that a unit gives the same bytes on every
process of the same kind. Not here: who gets which unit (`cluster.cache.job`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.assembly import assemble
from cluster.cache.host_copies import in_host_memory
from cluster.device_memory import refuse_full_gpu
from cluster.images import image_size
from cluster.precision import autocast, precision
from cluster.rank import Rank, set_up_torch
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_cache, require_teacher
from cluster.teachers.stored import (
    CHANNELS_FIRST,
    TRAIN,
    cache_needs,
    declared,
    head_facts,
    identity,
    own_statistics,
    reuses_head,
)
from cluster.weights import weights_fingerprint
from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import check_network
from kdcore.reused import TeacherHead
from pipelines.cache.columns import LOGITS, Code, Column, PlainColumn, columns_for
from pipelines.cache.fitting import fitted_codes
from pipelines.cache.manifest import Part, Plan
from pipelines.cache.reader import CLASS_MEANS, CLASS_SIMILARITY, CLASSIFIER, CODES, codes_of
from pipelines.cache.rows import HELD, encode_unchecked, refuse_not_held, row_bytes
from pipelines.cache.store import Shard, Unit, write_shard
from pipelines.loaders.base import Loader, requests_of

SMALLER_BATCH = "take a smaller cache.batch_size"
_SHARD_BYTES = 128 * 2**20
_SHARD_ROWS = 16_384
# Views that codes are fitted to, and those, an eighth as many, that they are measured on.
_FIT_ROWS, _HELD_BACK = 16_384, 2_048


class Builder:
    """The teacher of a recipe, with the data, on one device.

    run, config: with the images as the teacher sees them; students_run: with those that the student sees.
    """

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        teacher = require_teacher(config)
        self.cache = require_cache(config.cache, config.views)
        set_up_torch(config.train.deterministic)
        online = teacher.model_copy(update={"source": "online"})
        self.students_run = assemble(config.model_copy(update={"teacher": online}), Rank(0, 1, device))
        self.run = self.students_run.for_teacher
        asked = self.run.teachers.single
        self.needs = cache_needs(config)
        self.teacher = OnlineTeacher(asked.model, self.needs, asked.renormalise)
        self.config, self.device = self.run.config, device
        self._loaders: dict[str, Loader] = {}
        self.head = None
        if self.cache.head or reuses_head(config):
            self.head = TeacherHead.of(self.teacher.model, image_size(self.config))

    def plan(self) -> Plan:
        """Return the plan of the cache. Refused if the recipe reads nothing of its teacher, or it does not fit."""
        run = self.run
        check_network(self.teacher.model, image_size(self.config))
        num_classes = len(run.indexes[TRAIN].classes)
        columns = self._columns(num_classes)
        if not columns:
            raise Refused("the recipe's method reads no outputs of a teacher, so there is nothing to store")
        logits = PlainColumn(name=LOGITS, shape=(num_classes,), coding=self.cache.dtype)
        parts = {
            split: Part(
                num_rows=len(index), num_views=self.num_views(split), columns=columns if split == TRAIN else (logits,)
            )
            for split, index in run.indexes.items()
            if split == TRAIN or self.teacher.has_head
        }
        rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes(columns)))
        return Plan(
            identity=self.identity(),
            parts=parts,
            rows_per_shard=self.cache.rows_per_shard or rows,
            batch_size=self.cache.batch_size,
            head=head_facts(self.head)[0] if self.head else None,
        )

    def _columns(self, num_classes: int) -> tuple[Column, ...]:
        """Return the columns of training views. Refused where views of several sizes would give rows of several."""
        found: list[tuple[Column, ...]] = []
        for size in self.config.views.all_sizes:
            shapes = {tap: tuple(shape) for tap, shape in self.teacher.taps.shapes(size).items()}
            found.append(columns_for(self.needs, shapes, num_classes, size, self.cache))
            differing = [a.name for a, b in zip(found[0], found[-1], strict=True) if a != b]
            if differing:
                raise Refused(
                    f"at {size[0]} x {size[1]} pixels {differing[0]} has a different shape than at views.size, and a "
                    "cache holds rows of one shape; leave views.sizes out, or let the teacher answer online"
                )
        return found[0]

    def num_views(self, split: str) -> int:
        """Return the number of stored views per image: the recipe's for training images, one for others."""
        assert self.config.views.num_views is not None, "checked by require_cache"
        return self.config.views.num_views if split == TRAIN else 1

    def identity(self) -> dict[str, Any]:
        """Return what the rows are a function of."""
        run, config = self.run, self.config
        assert config.teacher is not None, "checked by the caller"
        teacher = {**declared(config.teacher), "weights": weights_fingerprint(self.teacher.model)}
        teacher |= own_statistics(config.teacher, self.teacher.model)
        teacher["precision"] = str(precision(config, self.device)).removeprefix("torch.")
        if moved := sorted(self.teacher.taps.moved):
            teacher[CHANNELS_FIRST] = moved
        evaluation = run.evaluation_plan(TRAIN).policy
        facts = identity(config, run.indexes, run.plan, evaluation, run.statistics)
        return {"teacher": teacher, **facts}

    @refuse_full_gpu(SMALLER_BATCH)
    def constants(self, plan: Plan) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Compute what is stored once, on the CPU; and the error of fitted columns, on views held back from the fit."""
        tensors: dict[str, Tensor] = {}
        if self.teacher.classifier is not None:
            tensors[f"{CLASSIFIER}weight"] = self.teacher.classifier.weight
            if self.teacher.classifier.bias is not None:
                tensors[f"{CLASSIFIER}bias"] = self.teacher.classifier.bias
        if self.head is not None:
            tensors |= head_facts(self.head)[1]
        statistics = self.run.class_statistics(self.teacher)
        tensors |= {CLASS_MEANS + tap: mean for tap, mean in statistics.means.items()}
        if statistics.similarity is not None:
            tensors[CLASS_SIMILARITY] = statistics.similarity
        codes, error = self._fitted_codes(plan.parts[TRAIN].columns)
        for name, code in codes.items():
            tensors |= {f"{CODES}{name}.{key}": tensor for key, tensor in code.tensors().items()}
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, error

    def _fitted_codes(self, columns: tuple[Column, ...]) -> tuple[dict[str, Code], dict[str, float]]:
        """Fit the columns' codes to the first images of the first full shuffle; return them with their errors."""
        num = min(self.run.plan.num_samples, _FIT_ROWS + _HELD_BACK)
        ids = self.run.plan.without_windows.order(0, np.arange(num))
        ids = ids[np.sort(np.unique(ids, return_index=True)[1])]  # in that order, each once
        num = len(ids)
        held_back = max(1, num // (1 + _FIT_ROWS // _HELD_BACK))

        def outputs(share: NDArray[np.int64]) -> Iterator[TeacherOutputs]:
            return (answer for _, answer in self.answers(TRAIN, 0, share))

        return fitted_codes(columns, lambda: outputs(ids[held_back:]), lambda: outputs(ids[:held_back]))

    @refuse_full_gpu(SMALLER_BATCH)
    def build(
        self, unit: Unit, plan: Plan, key: str, constants: dict[str, Tensor], on_rows_done: Callable[[int], None]
    ) -> Shard:
        """Compute and write a unit's shard. on_rows_done: called with their number, after every batch."""
        columns = plan.parts[unit.part].columns
        codes = codes_of(columns, constants, self.device)
        rows: dict[str, NDArray[Any]] = {
            name: np.empty((unit.stop - unit.start, spec.width), spec.dtype)
            for column in columns
            for name, spec in column.fields().items()
        }
        recent: dict[int, TeacherOutputs] = {}  # until they are known to be stored as they are

        def encoded() -> Iterator[tuple[int, dict[str, Tensor]]]:
            for done, outputs in self.answers(unit.part, unit.view, np.arange(unit.start, unit.stop)):
                recent[done] = outputs
                yield done, encode_unchecked(columns, outputs, codes)

        for done, arrays in in_host_memory(encoded(), self.device):
            outputs = recent.pop(done)
            if not arrays.pop(HELD).all():
                refuse_not_held(columns, outputs, codes)
            for name, array in arrays.items():
                rows[name][done - len(array) : done] = array
            on_rows_done(done)
        return write_shard(Path(self.cache.dir), unit, rows, key)

    def answers(self, part: str, view: int, ids: NDArray[np.int64]) -> Iterator[tuple[int, TeacherOutputs]]:
        """Yield the teacher's outputs for a view of the samples, batch by batch, each with the number of samples done.

        As in training: training views under autocast, validation views without.
        """
        done = 0
        for batch in self.loader(part).load(requests_of(ids, self.cache.batch_size, view)):
            done += len(batch)
            with autocast(self.config, self.run.rank) if part == TRAIN else nullcontext():
                outputs = self.teacher(batch)
            yield done, outputs

    def loader(self, part: str) -> Loader:
        """Return the loader of a part's images; kept, since a loader takes seconds to start."""
        if part not in self._loaders:
            plan = self.run.plan if part == TRAIN else self.run.evaluation_plan(part)
            self._loaders[part] = self.run.loader(part, plan, self.cache.batch_size)
        return self._loaders[part]


def cache_bytes(build: RunConfig) -> int:
    """Return the bytes that a cache, with all its parts, will take on disk."""
    parts = Builder(build, torch.device("cpu")).plan().parts.values()
    return sum(part.num_rows * part.num_views * row_bytes(part.columns) for part in parts)

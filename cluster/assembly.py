"""From a configuration to its parts: data, networks, distiller, loaders.

Used by the workers, and by everything that looks at a run without training it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import tee
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.batches import Batches
from cluster.images import check_labels, evaluation_batch, evaluation_policy, image_size, open_data, sampling_of
from cluster.memory_format import runs_channels_last, to_device
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import micro_batch_size
from cluster.teachers.assembly import assemble_teacher, reused_head
from cluster.teachers.class_statistics import STATISTICS_BATCH, class_statistics
from cluster.teachers.running import RunTeachers
from cluster.weights import starting_facts
from kdcore.batch import Batch, ClassStatistics, Statistics
from kdcore.distiller import Distiller
from kdcore.models import build_model, input_statistics
from kdcore.online_teacher import OnlineTeacher
from kdcore.reused import ReusedClassifierStudent
from pipelines.data.shards import in_windows, windows_of
from pipelines.data.source import Source
from pipelines.loaders.base import Loader, Request
from pipelines.loaders.choose import build_loader
from pipelines.loaders.paired import PairedLoader
from pipelines.views.plan import ViewPlan

ORDERED_AT_ONCE = 64  # steps whose sample ids are computed together: numpy's cost is per call


@dataclass(frozen=True)
class Assembly:
    """The parts of one run on one device. statistics: the (mean, std) by which its images are normalised."""

    config: RunConfig
    indexes: dict[str, Source]
    plan: ViewPlan
    student: nn.Module
    teachers: RunTeachers
    statistics: Statistics
    rank: Rank

    @cached_property
    def batches(self) -> Batches:
        """How an epoch's images are divided into batches."""
        return Batches.of(self.config, len(self.indexes["train"]), self.rank.world_size)

    @cached_property
    def starting_facts(self) -> dict[str, Any]:
        """The fingerprints of the weights and the code that the run starts from, as their files were at the first look.

        The networks were made then: what is written into these files later is none of this run's.
        """
        return starting_facts(self.config)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.batches.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.config.train.total_steps(self.steps_per_epoch)

    @property
    def channels_last(self) -> bool:
        """Whether images lie channels-last: where every network does."""
        return all(runs_channels_last(self.config, network, self.rank.device) for network in self.networks)

    @property
    def networks(self) -> list[nn.Module]:
        """The student, and the teachers that answer online."""
        return [self.student, *(teacher.model for teacher in self.teachers.online.values())]

    @cached_property
    def for_teacher(self) -> Assembly:
        """The run with the images as its online teacher sees them: itself, unless the teacher has its own size."""
        config = self.config.for_teacher
        if not self.teachers.online or config is self.config:
            return self
        return replace(self, config=config, plan=replace(self.plan, policy=config.views))

    @property
    def classes(self) -> tuple[str, ...]:
        """The class folders, in the order of the outputs."""
        return self.indexes["train"].classes

    @property
    def micro_batch(self) -> int:
        """The most images in one forward pass."""
        return micro_batch_size(self.config, self.rank.world_size)

    @property
    def micro_batches(self) -> range:
        """The numbers, within a global batch, of the micro-batches that this rank runs."""
        return self.rank.slice_of(self.batches.num_micro_batches)

    def train_requests(self, first_step: int) -> Iterator[Request]:
        """Yield this rank's micro-batches from a step on, in order, `len(self.micro_batches)` per step."""
        every, first = self.steps_per_epoch, first_step
        while first < self.total_steps:
            epoch = first // every
            stop = min(first + ORDERED_AT_ONCE, (epoch + 1) * every, self.total_steps)
            parts = self.batches.positions_of(range(first, stop), self.micro_batches)
            positions, ends = np.concatenate(parts), np.cumsum([len(part) for part in parts])[:-1]
            ids = np.split(self.plan.order(epoch, positions), ends)
            views = np.split(self.plan.views_at(epoch, positions), ends)
            for number, (view, mine) in enumerate(zip(views, ids, strict=True)):
                yield Request(view, mine, epoch=(first + number // len(self.micro_batches)) / every)
            first = stop

    def train_batches(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of `train_requests`, with the teacher's answers where they are stored."""
        requests, again = tee(self.train_requests(first_step))
        for batch, request in zip(self.train_loader().load(requests), again, strict=True):
            targets = self.teachers.targets(request)
            yield batch if targets is None else batch.with_targets(targets)

    def sample_ids(self, step: int, number: int | None = None) -> NDArray[np.int64]:
        """Return the ids of a step's global batch, or of one micro-batch by its number within that."""
        return self.plan.order(step // self.steps_per_epoch, self.batches.positions(step, number))

    def train_loader(self) -> Loader | PairedLoader:
        """Build the loader of training images under the recipe's view policy, with the teacher's if that differs."""
        loader, seen = self._train_loader(), self.for_teacher
        return loader if seen is self else PairedLoader(loader, seen._train_loader())

    def _train_loader(self) -> Loader:
        source = in_windows(self.indexes["train"], self.plan.windows)
        return self.loader("train", self.plan, self.micro_batch, source)

    @property
    def evaluation_batch(self) -> int:
        """The batch size of validation."""
        return evaluation_batch(self.config, self.rank.device)

    def evaluation_loader(self, split: str, max_batch: int | None = None) -> Loader:
        """Build the loader of a split's images, cut as for validation. max_batch: validation's, if not given."""
        return self.loader(split, self.evaluation_plan(split), max_batch or self.evaluation_batch)

    def evaluation_loader_of_both(self, split: str) -> Loader | PairedLoader:
        """Build the loader of a split's images, cut as for validation, with the teacher's if that differs."""
        seen = self.for_teacher
        if seen is self:
            return self.evaluation_loader(split)
        size = min(self.evaluation_batch, seen.evaluation_batch)
        return PairedLoader(self.evaluation_loader(split, size), seen.evaluation_loader(split, size))

    def evaluation_plan(self, split: str) -> ViewPlan:
        """Return the view plan of validation: one view of each of a split's images."""
        return ViewPlan(evaluation_policy(self.config), self.config.plan_seed, len(self.indexes[split]))

    def teacher_on(self, split: str, loader: Loader) -> tuple[dict[str, float], Tensor] | None:
        """Return the teacher's metrics on a split, and its logits on this rank's share [n,K]; None without a head.

        loader: of the split, for a teacher that answers online and sees the student's images."""
        index = self.indexes[split]
        if self.for_teacher is not self:
            loader = self.for_teacher.evaluation_loader(split)
        return self.teachers.evaluation(split, index, loader, self.rank)

    def loader(self, split: str, plan: ViewPlan, max_batch: int, source: Source | None = None) -> Loader:
        """Build the loader of a split's images under a view plan. source: the same images, read differently."""
        data, index = self.config.data, source or self.indexes[split]
        return build_loader(
            data.loader,
            index,
            plan,
            mean=self.statistics[0],
            std=self.statistics[1],
            device=self.rank.device,
            channels_last=self.channels_last,
            decode=data.decode,
            num_threads=data.num_threads,
            max_batch=max_batch,
            prefetch=data.prefetch,
        )

    def distiller(self, statistics: Mapping[str | None, ClassStatistics] | None = None) -> Distiller:
        """Build the distiller on this rank's device. Refused for a tap or a shape that does not fit.

        statistics: used instead of `every_class_statistics`.
        """
        train = self.indexes["train"]
        statistics = self.every_class_statistics() if statistics is None else statistics
        distiller = Distiller(
            self.student,
            self.config.method,
            image_size=image_size(self.config),
            num_samples=len(train),
            teacher=self.teachers.asked,
            teacher_shapes=self.teachers.shapes(image_size(self.for_teacher.config)),
            classes=train.classes,
            statistics=statistics,
            sample_labels=None if train.multi_label else torch.from_numpy(train.labels.astype(np.int64)),
            class_counts=torch.from_numpy(train.class_counts),
            num_epochs=self.config.train.epochs,
            seed=self.config.seed,
            num_views=self.config.views.num_views,
        )
        to_device(distiller, self.rank.device, self.channels_last)
        return distiller

    def every_class_statistics(self) -> dict[str | None, ClassStatistics]:
        """Return {teacher as terms name it: its class statistics}, stored or computed by a pass."""
        return self.teachers.class_statistics(self.for_teacher.class_statistics)

    def class_statistics(self, teacher: OnlineTeacher) -> ClassStatistics:
        """Compute what a teacher's needs name of the training set; see `cluster.teachers.class_statistics`."""
        if not teacher.needs.class_statistics:
            return ClassStatistics()
        return class_statistics(
            teacher,
            self.indexes["train"],
            lambda: self.loader("train", self.plan, STATISTICS_BATCH),
            lambda: self.evaluation_loader("train", STATISTICS_BATCH),
            self.rank,
        )


def assemble(
    config: RunConfig, rank: Rank, reuse_index: bool = False, indexes: dict[str, Source] | None = None
) -> Assembly:
    """Build every part on the rank's device. Refused if checkpoint, classes or cache do not fit together.

    reuse_index: as for `open_data`; indexes: used instead of what that returns.
    """
    indexes = indexes or open_data(config, reuse_index)
    check_labels(config, indexes["train"])
    classes = tuple(indexes["train"].classes)
    shards = config.data.window_shards
    windows = None if shards is None else windows_of(indexes["train"], shards)
    plan = ViewPlan(
        config.views, config.plan_seed, len(indexes["train"]), windows, sampling_of(config, indexes["train"])
    )
    # The student's first weights are a function of the seed only: not of the teacher, nor of where it answers from.
    torch.manual_seed(config.seed)
    student = build_model(config.student, classes)
    statistics = input_statistics(student)
    if config.data.mean and config.data.std:
        statistics = (config.data.mean, config.data.std)
    with torch.random.fork_rng(devices=[]):
        found = [assemble_teacher(one, indexes, plan, statistics, rank) for one in config.teacher_recipes]
        teachers = RunTeachers.of(config, found)
        head = reused_head(config, found)
    if head is not None:
        student = ReusedClassifierStudent(student, head, image_size(config), config.student.factor)
    run = Assembly(config, indexes, plan, student, teachers, statistics, rank)
    for network in run.networks:
        to_device(network, rank.device, run.channels_last)
    return run

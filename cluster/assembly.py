"""From a configuration to its parts: data, networks, distiller, loaders. Used by the workers, and by everything that
looks at a run without training it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.config import RunConfig, check_workers
from cluster.passes import EVALUATION_BATCH, class_means
from cluster.rank import Rank
from kdcore.distiller import Distiller, OnlineTeacher, renormalisation
from kdcore.models import build_model, input_statistics
from kdcore.reused import ReusedClassifierStudent, TeacherHead
from pipelines.datasets import ImageIndex, build_index, check_same_classes
from pipelines.loader import Loader, Request, build_loader
from pipelines.plan import ViewPlan, ViewPolicy


def open_data(config: RunConfig) -> dict[str, ImageIndex]:
    """The run's image indexes {train, val, held_out}; built at the first use, then read back."""
    data = config.data
    cache_dir = Path(config.output_dir) / "index"
    train = build_index(data.root, data.train_split, cache_dir)
    indexes = {"train": train, "val": build_index(data.root, data.val_split, cache_dir)}
    check_same_classes(train, indexes["val"])
    if data.held_out:
        indexes["train"], indexes["held_out"] = train.split(data.held_out, config.seed)
    if len(indexes["train"]) < config.train.batch_size:
        raise ValueError(
            f"train.batch_size {config.train.batch_size} is more than the {len(indexes['train'])} training images of "
            f"{data.root}; take a smaller batch"
        )
    return indexes


def evaluation_policy(config: RunConfig) -> ViewPolicy:
    """How validation images are cut: the centre, nothing random."""
    crop_pct = 1.0 if config.views.crop == "padded" else config.data.crop_pct
    return ViewPolicy.evaluation(config.data.evaluation_size or config.views.size, crop_pct)


@dataclass(frozen=True)
class Assembly:
    """The parts of one run on one device. statistics: the (mean, std) by which its images are normalised."""

    config: RunConfig
    indexes: dict[str, ImageIndex]
    plan: ViewPlan
    student: nn.Module
    teacher: OnlineTeacher | None
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    rank: Rank

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: an epoch's last few images wait for another epoch's order."""
        return len(self.indexes["train"]) // self.config.train.batch_size

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.config.train.epochs
        return min(steps, self.config.train.max_steps or steps)

    @property
    def micro_batch(self) -> int:
        """Images of one forward pass."""
        return check_workers(self.config.train, self.rank.world_size, self.config.views.mixes)

    @property
    def micro_batches(self) -> range:
        """The numbers, within a global batch, of the micro-batches that this rank runs."""
        return self.rank.slice_of(self.config.train.batch_size // self.micro_batch)

    def train_requests(self, first_step: int) -> Iterator[Request]:
        """This rank's micro-batches from a step on, in order; `len(self.micro_batches)` of them a step."""
        for step in range(first_step, self.total_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            for number in self.micro_batches:
                start = within * self.config.train.batch_size + number * self.micro_batch
                ids = self.plan.order(epoch, np.arange(start, start + self.micro_batch))
                yield Request(view=self.plan.view_of(epoch), sample_ids=ids, epoch=step / self.steps_per_epoch)

    def train_loader(self) -> Loader:
        """The training images under the recipe's view policy."""
        return self._loader("train", self.plan, self.micro_batch)

    def evaluation_loader(self, split: str) -> Loader:
        """A split's images, cut as for validation."""
        plan = ViewPlan(evaluation_policy(self.config), self.config.seed, len(self.indexes[split]))
        return self._loader(split, plan, EVALUATION_BATCH)

    def _loader(self, split: str, plan: ViewPlan, max_batch: int) -> Loader:
        data, index = self.config.data, self.indexes[split]
        return build_loader(
            data.loader,
            index,
            plan,
            mean=self.statistics[0],
            std=self.statistics[1],
            num_classes=len(index.classes),
            device=self.rank.device,
            decode=data.decode,
            num_threads=data.num_threads,
            max_batch=max_batch,
            prefetch=data.prefetch,
        )

    def distiller(self) -> Distiller:
        """The distiller on this rank's device. ValueError for a tap or a shape that does not fit."""
        train, means = self.indexes["train"], None
        if self.config.needs.class_means and self.teacher is not None:
            loader = self.evaluation_loader("train")
            means = class_means(self.teacher, loader, len(train), len(train.classes), self.rank)
        distiller = Distiller(
            self.student,
            self.config.method,
            image_size=image_size(self.config),
            num_samples=len(train),
            teacher=self.teacher,
            class_means=means,
            sample_labels=torch.from_numpy(train.labels.astype(np.int64)),
        )
        return placed(distiller, self.config, self.rank)


def assemble(config: RunConfig, rank: Rank) -> Assembly:
    """Every part on the rank's device. ValueError for what does not fit together: a checkpoint, a class count."""
    indexes = open_data(config)
    classes = tuple(indexes["train"].classes)
    student, teacher_model = build_networks(config, classes)
    statistics = input_statistics(student)
    if config.data.mean and config.data.std:
        statistics = (config.data.mean, config.data.std)
    teacher = None
    if teacher_model is not None:
        scale = renormalisation(statistics, input_statistics(teacher_model))
        if scale is not None:
            scale = (scale[0].to(rank.device), scale[1].to(rank.device))
        teacher = OnlineTeacher(placed(teacher_model, config, rank), config.needs, scale)
    plan = ViewPlan(config.views, config.seed, len(indexes["train"]))
    return Assembly(config, indexes, plan, placed(student, config, rank), teacher, statistics, rank)


def build_networks(config: RunConfig, classes: tuple[str, ...]) -> tuple[nn.Module, nn.Module | None]:
    """(student, teacher). The student's first weights are a function of the run's seed alone."""
    teacher = build_model(config.teacher, classes) if config.teacher else None
    if teacher is not None and teacher.num_classes != len(classes):
        raise ValueError(
            f"the teacher has {teacher.num_classes} outputs for {len(classes)} classes of the data; name the file that "
            "maps class folders to its outputs as teacher.class_indices"
        )
    torch.manual_seed(config.seed)
    student = build_model(config.student, classes)
    if config.student.classifier == "reused":
        assert teacher is not None, "checked by RunConfig"
        size = image_size(config)
        student = ReusedClassifierStudent(student, TeacherHead.of(teacher, size), size, config.student.factor)
    return student, teacher


def image_size(config: RunConfig) -> tuple[int, int]:
    return (config.views.height, config.views.width)


def placed(module: nn.Module, config: RunConfig, rank: Rank):  # type: ignore[no-untyped-def]
    """The module on the rank's device, in the recipe's memory format."""
    layout = torch.channels_last if config.train.channels_last else torch.preserve_format
    return module.to(rank.device).to(memory_format=layout)

"""Is a cache worth it? The teacher, the student and the loader measured for some seconds, and the arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

import torch

from cluster.assembly import Assembly
from cluster.cache.builder import Builder
from cluster.device_memory import refuse_full_gpu
from cluster.images import image_size
from cluster.nodes.resources import use_worker_threads
from cluster.precision import autocast
from cluster.rank import synchronise
from cluster.recipe.config import RunConfig
from cluster.teachers.running import RunTeachers
from cluster.teachers.stored import TRAIN
from kdcore.batch import Batch
from kdcore.rehearsal import check_network
from kdcore.terms.logits import cross_entropy
from pipelines.cache.rows import row_bytes


@dataclass(frozen=True)
class Speeds:
    """Images per second of each part by itself on one worker.

    overlap: whether the loader works while the networks do (on a GPU), or takes its turn on the same cores;
    teacher_loader: of the images in the teacher's own size, None where it sees the student's.
    """

    loader: float
    teacher: float
    student: float
    overlap: bool
    teacher_loader: float | None = None

    def seconds(self, student: bool, teacher: bool) -> float:
        """Return the seconds per image, through the loaders and the networks that look at it."""
        networks = student / self.student + teacher / self.teacher
        if self.teacher_loader is None:
            loading = 1 / self.loader
        else:
            loading = student / self.loader + teacher / self.teacher_loader
        return max(loading, networks) if self.overlap else loading + networks


@dataclass(frozen=True)
class Outlook:
    """The cost of a run on its workers with the teacher online, and with its outputs in a cache.

    The losses' own cost, the same for both, is left out.
    """

    speeds: Speeds
    num_images: int
    num_views: int
    epochs: int
    num_workers: int
    row_bytes: int

    @property
    def online_seconds(self) -> float:
        """Seconds of an epoch with the teacher online."""
        return self._all(self.speeds.seconds(student=True, teacher=True))

    @property
    def cached_seconds(self) -> float:
        """Seconds of an epoch from the cache; reading a row takes microseconds, which is left out."""
        return self._all(self.speeds.seconds(student=True, teacher=False))

    @property
    def build_seconds(self) -> float:
        return self._all(self.speeds.seconds(student=False, teacher=True)) * self.num_views

    @property
    def num_bytes(self) -> int:
        return self.num_images * self.num_views * self.row_bytes

    @property
    def break_even_epochs(self) -> float | None:
        """The number of epochs after which the build has paid off; None for never."""
        saved = self.online_seconds - self.cached_seconds
        return self.build_seconds / saved if saved > 0.02 * self.online_seconds else None

    @property
    def recommendation(self) -> str:
        if self.break_even_epochs is None:
            return (
                f"online: the loader gives {self.speeds.loader:,.0f} images/s and is the bottleneck either way, so a "
                "cache would gain nothing; speed up the loader first (data.num_threads, GPU decoding)"
            )
        trials = self.break_even_epochs / self.epochs
        if trials <= 1:
            return f"cache: it is paid for within one run of {self.epochs} epochs"
        return (
            f"cache for {int(trials) + 1} runs or more (a sweep, several students); online for fewer. Fewer views "
            "(views.num_views) are paid for sooner"
        )

    def _all(self, seconds: float) -> float:
        return self.num_images * seconds / self.num_workers


@refuse_full_gpu("take a smaller train.micro_batch")
def outlook(config: RunConfig, device: torch.device, seconds: float) -> Outlook:
    """Measure each part for about `seconds` on this device. Refused as for a build."""
    use_worker_threads(config)
    builder = Builder(config, device)
    plan = builder.plan()
    columns, run = plan.parts[TRAIN].columns, builder.students_run
    check_network(run.student, image_size(config))
    batch, loader = measured_loader(replace(run, teachers=RunTeachers()), seconds)
    theirs, teacher_loader = batch, None
    if builder.run is not run:
        theirs, teacher_loader = measured_loader(builder.run, seconds)
    student = run.student.train()

    def ask() -> None:
        with autocast(config, run.rank):
            builder.teacher(theirs)

    def learn() -> None:
        with autocast(config, run.rank):
            loss = cross_entropy(student(batch.images), batch.labels).mean()
        loss.backward()
        student.zero_grad()

    speeds = Speeds(
        loader=loader,
        teacher=len(theirs) * rate(ask, device, seconds),
        student=len(batch) * rate(learn, device, seconds),
        overlap=device.type == "cuda",
        teacher_loader=teacher_loader,
    )
    return Outlook(
        speeds=speeds,
        num_images=run.plan.num_samples,
        num_views=plan.parts[TRAIN].num_views,
        epochs=config.train.epochs,
        num_workers=config.scaling.num_ranks,
        row_bytes=row_bytes(columns),
    )


def measured_loader(run: Assembly, seconds: float) -> tuple[Batch, float]:
    """Return a training batch, and its loader's images per second, without those prepared before the clock starts."""
    requests = (request for _ in cycle([None]) for request in run.train_requests(0))
    batches = run.train_loader().load(requests)
    for _ in range(run.config.data.prefetch + 1):
        batch = next(batches)
    return batch, len(batch) * rate(lambda: next(batches), run.rank.device, seconds)


def rate(action: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the calls per second, measured for about `seconds` after one call that does not count."""
    action()
    synchronise(device)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        action()
        count += 1
    synchronise(device)
    return count / (time.perf_counter() - started)

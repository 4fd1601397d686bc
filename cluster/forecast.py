"""What a run will take, in steps and seconds, from a short measurement of its own steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, cycle

from cluster.assembly import Assembly, assemble
from cluster.nodes.resources import device_here, use_worker_threads
from cluster.rank import Rank, synchronise
from cluster.recipe.config import RunConfig
from cluster.rehearsal import stand_in
from cluster.training.loop import ForwardBackward
from kdcore.batch import Batch


@dataclass(frozen=True)
class Forecast:
    """What a run takes. images_per_second: of one worker, from its loader through the backward pass."""

    num_images: int
    batch_size: int
    steps_per_epoch: int
    total_steps: int
    num_workers: int
    images_per_second: float

    @property
    def seconds(self) -> float:
        """Seconds of training on workers that are all equally fast; start-up, validation and optimiser are left out."""
        return self.total_steps * self.batch_size / (self.images_per_second * self.num_workers)


def forecast(config: RunConfig, seconds: float) -> Forecast:
    """Measure a run's steps for about `seconds`, at least one step, where it would run. Trains nothing."""
    use_worker_threads(config)
    run = assemble(config, Rank(0, 1, device_here(config)))
    return Forecast(
        num_images=len(run.indexes["train"]),
        batch_size=config.train.batch_size,
        steps_per_epoch=run.steps_per_epoch,
        total_steps=run.total_steps,
        num_workers=config.scaling.num_ranks,
        images_per_second=measured_speed(run, seconds),
    )


def measured_speed(run: Assembly, seconds: float) -> float:
    """Return the images per second of one worker's loader, networks and losses, forward and backward."""
    distiller = run.distiller(stand_in(run)).to(run.rank.device).train()
    compute, batches = ForwardBackward(run, distiller), endless_batches(run)
    for _ in range(2):  # warm-up: autotuning and allocation
        compute(next(batches), 1.0, synchronise=True)
    synchronise(run.rank.device)
    started, seen = time.perf_counter(), 0
    while not seen or time.perf_counter() - started < seconds:
        batch = next(batches)
        compute(batch, 1.0, synchronise=True)
        distiller.zero_grad()
        seen += len(batch)
    synchronise(run.rank.device)
    return seen / (time.perf_counter() - started)


def endless_batches(run: Assembly) -> Iterator[Batch]:
    """Yield the batches of the run, over and over."""
    return chain.from_iterable(run.train_batches(0) for _ in cycle([None]))

"""How the images of an epoch are divided into steps, and each step into micro-batches.

An epoch's positions are taken in turn, `train.batch_size` per step. Every step has the same number of micro-batches, so
that every rank has its part in each; the last, smaller batch, where it is kept (`train.last_batch: keep`), is divided
into as many smaller ones, as evenly as possible. All of it is a function of the recipe and the number of images.

Not here: which image stands at a position (`pipelines.views.plan`), and what a micro-batch weighs in its step's
gradient (`cluster.training.loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cluster.recipe.config import RunConfig
from cluster.recipe.rules import micro_batch_size
from kdcore.errors import Refused

MIN_MICRO_BATCH = 2  # images of a micro-batch: batch norm, and losses that compare images, cannot work on one


@dataclass(frozen=True)
class Batches:
    """The batches of a run. num_micro_batches: of a step; in_pairs: mixed images, whose partners stay together.

    micro_batch: the images of a micro-batch, if the recipe fixes that; else every worker has one micro-batch per step.
    """

    num_images: int
    batch_size: int
    num_micro_batches: int
    keeps_last: bool = False
    in_pairs: bool = False
    num_workers: int = 1
    micro_batch: int | None = None

    @classmethod
    def of(cls, config: RunConfig, num_images: int, num_workers: int | None = None) -> Batches:
        """Return the batches of a recipe's run on this many images.

        num_workers: how many there are; None: as many as the recipe asks for. Refused if they cannot share a batch, if
        it is of more images than there are, and for a last batch that cannot be kept. Only what trains asks for it.
        """
        train, num_workers = config.train, num_workers or config.scaling.num_ranks
        num = train.batch_size // micro_batch_size(config, num_workers)
        if num_images < train.batch_size:
            raise Refused(
                f"train.batch_size {train.batch_size} is more than the {num_images} training images of "
                f"{config.data.root}; take a smaller batch"
            )
        keeps, mixes = train.last_batch == "keep", config.views.mixes
        made = cls(num_images, train.batch_size, num, keeps, mixes, num_workers, train.micro_batch)
        made.check()
        return made

    @property
    def num_left(self) -> int:
        """Images of an epoch left over after its whole batches."""
        return self.num_images % self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return self.num_images // self.batch_size + bool(self.keeps_last and self.num_left)

    @property
    def images_per_epoch(self) -> int:
        """Images of all steps of an epoch."""
        return self.num_images if self.keeps_last else self.num_images - self.num_left

    def num_in(self, step: int) -> int:
        """Return the number of images in a step of the run (0 is the first)."""
        start = step % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.images_per_epoch - start)

    def num_until(self, step: int) -> int:
        """Return the number of images seen after `step` steps."""
        epochs, steps = divmod(step, self.steps_per_epoch)
        return epochs * self.images_per_epoch + steps * self.batch_size  # only an epoch's last batch is smaller

    def bounds(self, step: int) -> NDArray[np.int64]:
        """Return the positions in its epoch at which a step's micro-batches begin, and its end: [micro-batches + 1]."""
        start, together = step % self.steps_per_epoch * self.batch_size, 2 if self.in_pairs else 1
        units = -(-self.num_in(step) // together)
        ends = np.arange(self.num_micro_batches + 1) * units // self.num_micro_batches * together
        return start + np.minimum(ends, self.num_in(step))

    def positions(self, step: int, number: int | None = None) -> NDArray[np.int64]:
        """Return the positions in its epoch of a step's images, or of one of its micro-batches: [n]."""
        bounds = self.bounds(step)
        return np.arange(bounds[0], bounds[-1]) if number is None else np.arange(bounds[number], bounds[number + 1])

    def positions_of(self, steps: Sequence[int], numbers: range) -> list[NDArray[np.int64]]:
        """Return the positions of these micro-batches of each of the steps, in turn."""
        return [np.arange(bounds[n], bounds[n + 1]) for bounds in map(self.bounds, steps) for n in numbers]

    @property
    def shares_last(self) -> bool:
        """Whether no images are left over, or enough to give each micro-batch at least two.

        This holds in pairs, too: an odd image ends up in the last micro-batch, which then has a pair as well.
        """
        return not self.num_left or self.num_left >= self.num_micro_batches * MIN_MICRO_BATCH

    def check(self) -> None:
        """Refuse a last batch, where it is kept, that is too small for its micro-batches."""
        if not self.keeps_last or self.shares_last:
            return
        better, number = self.nearest_that_shares(), self.num_micro_batches
        near = f"train.batch_size={better} does, or take" if better else "take"
        each = f"each of the step's {number} micro-batches" if number > 1 else "the step's one micro-batch"
        raise Refused(
            f"train.last_batch=keep: the last batch of an epoch would have {self.num_left} of {self.num_images:,} "
            f"images, which does not give {MIN_MICRO_BATCH} to {each}; {near} train.last_batch=drop"
        )

    def others(self) -> list[Batches]:
        """Return the same images in batches of every size that the recipe could have, those of the nearest size first.

        The workers share each evenly; none is more than twice as large.
        """
        fixed, num = self.micro_batch, self.num_micro_batches
        step = fixed * self.num_workers if fixed else num * (2 if self.in_pairs else 1)
        sizes = range(step, min(self.num_images, 2 * self.batch_size) + 1, step)
        made = [replace(self, batch_size=size, num_micro_batches=size // fixed if fixed else num) for size in sizes]
        return sorted(made, key=lambda other: (abs(other.batch_size - self.batch_size), other.batch_size))

    def nearest_that_shares(self) -> int | None:
        """Return the nearest batch size whose last batch can be divided."""
        least = MIN_MICRO_BATCH
        fitting = (o.batch_size for o in self.others() if o.shares_last and o.batch_size >= o.num_micro_batches * least)
        return next(fitting, None)

"""The step of a training run: all that happens between one optimiser update and the next, on one rank.

`TrainingLoop.step` is the only place where schedule, seeds, micro-batches, gradients, clipping, the update, the moving
average and the check for finite numbers meet. Nothing here knows Ray, files or MLflow: `worker` puts checkpoints,
validation and recording around it, and `ops.reproduce.lane` puts CUDA streams and graphs around it.

Not here: what a step computes (`kdcore.distiller`), and what a batch is (`pipelines`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from cluster.assembly import Assembly
from cluster.precision import autocast
from cluster.rank import seed_micro_batch
from cluster.recipe.config import RunConfig
from cluster.training.checkpoint import TrainState
from cluster.training.finite import FiniteWatch
from cluster.training.moving_average import MovingAverage
from cluster.training.running_statistics import RunningStatistics
from cluster.training.selection import patience_is_over
from kdcore.batch import Batch
from kdcore.distiller import StepOutput
from kdcore.optim import Schedule, build_optimizer

# Called with the number of a micro-batch within the global batch, the micro-batch, and what it gave.
Observer = Callable[[int, Batch, StepOutput], None]


class Compute(Protocol):
    """The forward and the backward pass of one micro-batch."""

    def __call__(self, batch: Batch, share: float, synchronise: bool) -> StepOutput:
        """Add `share` times the gradient of the mean loss to the parameters' gradients.

        share: the micro-batch's part of the global batch, times the number of ranks where these average. synchronise:
        whether the ranks' gradients are averaged in this pass; only the last one of a step needs that.
        """


class ForwardBackward:
    """The passes of a network as PyTorch runs them, under the recipe's autocast.

    no_sync: gives the context in which a data-parallel wrapper keeps its gradients to itself.
    """

    def __init__(
        self,
        run: Assembly,
        model: Callable[[Batch], StepOutput],
        no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.run, self.model, self.no_sync = run, model, no_sync

    def __call__(self, batch: Batch, share: float, synchronise: bool) -> StepOutput:
        with nullcontext() if synchronise else self.no_sync():
            with autocast(self.run.config, self.run.rank):
                output = self.model(batch)
            (output.loss * share).backward()
        return output


@dataclass(frozen=True)
class StepRecord:
    """What one optimiser step was: its number (0 for the first), rate, and norm of the whole gradient before clipping.

    rate: of the schedule; a layer may have a share of it. gradient_norm: a scalar tensor on the device, equal
    on all ranks; reading it waits for the device.
    """

    step: int
    rate: float
    gradient_norm: Tensor


class TrainingLoop:
    """The steps of one run on one rank, from the state's step on.

    compute: the passes of a micro-batch; by default those of the state's distiller.
    """

    def __init__(self, run: Assembly, state: TrainState, compute: Compute | None = None) -> None:
        self.run, self.state, self.config = run, state, run.config
        self.compute: Compute = compute or ForwardBackward(run, state.distiller)
        self.schedule = Schedule(self.config.schedule, state.optimizer, self.config.train.epochs, run.steps_per_epoch)
        self.watch = FiniteWatch(run, state)
        self.statistics = RunningStatistics(run, state.distiller)
        self.parameters = [parameter for parameter in state.distiller.parameters() if parameter.requires_grad]

    @property
    def is_done(self) -> bool:
        """Whether the run has taken its last step, or has waited long enough for better weights."""
        state, run = self.state, self.run
        return state.step >= run.total_steps or patience_is_over(
            self.config.train, run.steps_per_epoch, state.step, state.best_step
        )

    def step(self, batches: Iterator[Batch], observe: Observer | None = None) -> StepRecord:
        """Take one optimiser step on this rank's next micro-batches."""
        state, run = self.state, self.run
        self.schedule.set_step(state.step)
        state.distiller.train()
        self.watch.begin_step()
        self.statistics.begin_step()
        for number in run.micro_batches:
            seed_micro_batch(self.config.seed, state.step, number)
            batch = next(batches)
            # The ranks' gradients are averaged: weigh them so that the sum is the mean over the global batch.
            share = len(batch) * run.rank.world_size / run.batches.num_in(state.step)
            output = self.compute(batch, share, synchronise=number == run.micro_batches[-1])
            self.watch.see(number, output)
            if observe is not None:
                observe(number, batch, output)
        self.statistics.end_step()
        record = StepRecord(state.step, self.schedule.rate, self.clip_gradient())
        if self.watch.allows_update(record.gradient_norm):
            state.optimizer.step()
            state.distiller.end_step()
            if state.ema:
                # timm's average begins as a copy of the first update, which may not be the first step's.
                state.ema.update(state.distiller.student, state.step + 1 - state.skipped_steps)
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        return record

    def clip_gradient(self) -> Tensor:
        """Return the norm of the whole gradient, then clipped to `train.clip_norm` where the recipe has one."""
        if self.config.train.clip_norm:
            return nn.utils.clip_grad_norm_(self.parameters, self.config.train.clip_norm)
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])


def new_state(run: Assembly) -> TrainState:
    """Build the state of a run that has taken no step yet, on the rank's device."""
    distiller = run.distiller()
    optimizer = build_optimizer(run.config.optimizer, distiller)
    return TrainState(distiller, optimizer, make_ema(run.config, distiller.student))


def make_ema(config: RunConfig, student: nn.Module) -> MovingAverage | None:
    """Build the moving average of the student, if the recipe wants one."""
    if config.train.ema_decay is None:
        return None
    return MovingAverage(student, decay=config.train.ema_decay, use_warmup=config.train.ema_warmup)


def ends_epoch(step: int, run: Assembly, every_epochs: int = 1) -> bool:
    """Return whether a number of whole epochs, or the run, is over after `step` optimiser steps."""
    return step == run.total_steps or step % (every_epochs * run.steps_per_epoch) == 0

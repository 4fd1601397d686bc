"""Numbers that stop being finite: noticed on the device, named, and never saved.

A step keeps a handful of scalars on the device and waits for nothing; the host looks where it waits for the device
anyway: at the end of every reporting interval, before a validation and before a checkpoint.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from cluster.assembly import Assembly
from cluster.training.checkpoint import TrainState
from kdcore.distiller import Distiller, StepOutput
from kdcore.errors import RunFailed
from kdcore.terms.base import SteppedModule

SHOWN_SAMPLES = 8


class NotFinite(RunFailed):
    """A run whose loss, gradient or weights are not finite any more; the same steps would lead to it again."""


class Place(NamedTuple):
    """Where a number was not finite; the smallest of several is the one to name.

    step: 0 for the first; position: in the watch's `names`; number: of the micro-batch within the global batch.
    """

    step: int
    position: int
    number: int


NOWHERE = Place(2**53, 0, 0)  # later than any step, and exact in float64


class FiniteWatch:
    """What this rank's steps gave since the host looked last, and the rule for steps that are not finite."""

    def __init__(self, run: Assembly, state: TrainState) -> None:
        self.run, self.state, self.train = run, state, run.config.train
        self.names = [*state.distiller.terms, "loss", "gradient"]
        self.values: list[tuple[int, int, Tensor]] = []  # (step, micro-batch, [terms and loss])
        self.norms: list[tuple[int, Tensor]] = []  # (step, norm of the whole gradient)
        self.buffers: list[tuple[Tensor, Tensor]] = []  # (buffer that passes write, its values before the step)

    @property
    def skips(self) -> bool:
        """Whether a step whose gradient is not finite is left out instead of ending the run."""
        return self.train.on_nonfinite == "skip"

    def begin_step(self) -> None:
        """Keep the buffers that a forward pass changes, where the step may have to be left out."""
        if self.skips:
            self.buffers = [(buffer, buffer.clone()) for buffer in forward_buffers(self.state.distiller)]

    def see(self, number: int, output: StepOutput) -> None:
        """Keep the terms and the loss of a micro-batch, to be looked at later."""
        if not self.skips:
            scalars = [*output.terms.values(), output.loss.detach()]
            self.values.append((self.state.step, number, torch.stack([scalar.float() for scalar in scalars])))

    def allows_update(self, gradient_norm: Tensor) -> bool:
        """Return whether the optimiser may take the step: always, except for a gradient that `skip` leaves out.

        The gradient is the same on every rank, so all of them decide alike. NotFinite where more steps than the recipe
        allows have been left out.
        """
        if not self.skips:
            self.norms.append((self.state.step, gradient_norm))
            return True
        if math.isfinite(float(gradient_norm)):  # waits for the device: the price of leaving steps out
            return True
        for buffer, before in self.buffers:
            buffer.copy_(before)
        self.state.distiller.drop_step()
        self.state.skipped_steps += 1
        share = self.state.skipped_steps / self.run.total_steps
        if share > self.train.max_skipped:
            raise NotFinite(
                f"the gradient of {self.state.skipped_steps} of {self.run.total_steps} steps was not finite, a larger "
                f"share than train.max_skipped={self.train.max_skipped:g}; {remedy(self.state.step)}"
            )
        return False

    def verify(self) -> None:
        """Raise NotFinite, on every rank, if any rank has met a number that is not finite; waits for the device."""
        place = min(self._first_value(), self._first_norm())
        self.values, self.norms = [], []
        on_device = torch.tensor(place, dtype=torch.float64, device=self.run.rank.device)
        step, position, number = min(Place(*map(int, row)) for row in self.run.rank.gather(on_device).tolist())
        if step == NOWHERE.step:
            return
        name = self.names[position]
        if name == "gradient":  # the sum over the whole batch
            what, where, ids = "the gradient", "samples", self.run.sample_ids(step)
        else:
            what = "the loss" if name == "loss" else f"the term {name}"
            where, ids = f"micro-batch {number}, samples", self.run.sample_ids(step, number)
        shown = ", ".join(map(str, ids[:SHOWN_SAMPLES].tolist())) + (", ..." if len(ids) > SHOWN_SAMPLES else "")
        raise NotFinite(
            f"{what} was not finite in step {step + 1} of {self.run.total_steps} ({where} {shown}); {remedy(step)}"
        )

    def verify_weights(self) -> None:
        """Raise NotFinite as `verify` does, and if a weight or its moving average is not finite after the last step."""
        self.verify()
        modules = [self.state.distiller, *([self.state.ema.module] if self.state.ema else [])]
        for module in modules:
            tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
            finite = torch.stack([tensor.isfinite().all() for tensor in tensors.values()])
            if not bool(finite.all()):
                name = list(tensors)[int(finite.logical_not().nonzero()[0])]
                raise NotFinite(
                    f"the weights are not finite after step {self.state.step} of {self.run.total_steps} (the first is "
                    f"{name}); {remedy(self.state.step - 1)}"
                )

    def _first_value(self) -> Place:
        if not self.values:
            return NOWHERE
        wrong = torch.stack([values for _, _, values in self.values]).isfinite().logical_not()  # [N, terms and loss]
        places = (
            Place(self.values[row][0], position, self.values[row][1]) for row, position in wrong.nonzero().tolist()
        )
        return min(places, default=NOWHERE)

    def _first_norm(self) -> Place:
        if not self.norms:
            return NOWHERE
        wrong = torch.stack([norm for _, norm in self.norms]).isfinite().logical_not()
        rows = wrong.nonzero().flatten().tolist()
        last = self.run.micro_batches[-1]
        return min((Place(self.norms[row][0], len(self.names) - 1, last) for row in rows), default=NOWHERE)


def forward_buffers(distiller: Distiller) -> list[Tensor]:
    """Return the buffers that a forward pass may write: the student's, and of the terms' modules what they name."""
    found = list(distiller.student.buffers())
    for module in distiller.extras.values():
        found += module.forward_buffers() if isinstance(module, SteppedModule) else module.buffers()
    return found


def remedy(step: int) -> str:
    """Return what to do about a step (0 for the first) whose numbers are not finite."""
    return (
        "lower optimizer.lr, warm it up (schedule.warmup_epochs) or set train.clip_norm; the same command with "
        f"--replay {step + 1} shows where it begins"
    )

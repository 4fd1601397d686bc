"""Optimiser and learning-rate schedule, from timm's factories; the rate is a pure function of the step."""

from __future__ import annotations

import math

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from kdcore.configs import CYCLED_MOMENTUM, OptimizerConfig, ScheduleConfig
from kdcore.errors import Refused, did_you_mean


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser over every trained parameter of the module.

    Refused for an `opt` that timm does not know, and for arguments that it does not take.
    """
    known = [str(name) for name in list_optimizers()]
    if config.opt.lower().removeprefix("lookahead_") not in known:
        hint = did_you_mean(config.opt.lower(), known, f"timm has {', '.join(known)}", n=4, cutoff=0.5)
        raise Refused(f"optimizer.opt: unknown optimiser {config.opt!r}; {hint}")
    if "_" in config.opt.lower().removeprefix("lookahead_"):
        raise Refused(
            f"optimizer.opt {config.opt!r}: timm takes what follows the last '_' for the name, which would be "
            "another optimiser; register it under a name without one"
        )
    if get_optimizer_info(config.opt.lower().removeprefix("lookahead_")).second_order:
        raise Refused(
            f"optimizer.opt {config.opt!r} needs second derivatives, which no step keeps; take another, such as adamw"
        )
    _check_layer_decay(config, module)
    try:
        return create_optimizer_v2(
            [p for p in module.parameters() if p.requires_grad] if config.decay_all else module,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **config.args,
        )
    except (TypeError, ValueError, AssertionError, ImportError) as error:
        raise Refused(
            f"optimizer.opt {config.opt!r} cannot be made with optimizer.args {config.args} ({error}); correct "
            "them, or take none: optimizer.args={}"
        ) from error


def _check_layer_decay(config: OptimizerConfig, module: nn.Module) -> None:
    """Refuse `layer_decay` where timm would see one layer, or none."""
    asked = sorted(name for name in config.args if name.startswith("layer_decay"))
    if not asked:
        return
    if config.args.get("layer_decay") is None:
        raise Refused(f"optimizer.args: {asked[0]} has no effect without layer_decay; add it, such as 0.75")
    if config.decay_all:
        raise Refused(
            "optimizer.args: layer_decay has no effect with decay_all, which puts all parameters into one group; leave "
            "one of the two out"
        )
    if not hasattr(module, "group_matcher"):
        network = type(getattr(module, "student", module)).__name__
        raise Refused(
            f"optimizer.args: layer_decay asks a network for its layers, and {network} has no group_matcher to name "
            "them, as timm's networks have; leave layer_decay out"
        )


class Schedule:
    """Sets the learning rate that the update of a step uses.

    A pure function of the step, so resuming restores only the step.
    """

    def __init__(
        self, config: ScheduleConfig, optimizer: torch.optim.Optimizer, num_epochs: int, steps_per_epoch: int
    ) -> None:
        self._optimizer = optimizer
        self._scheduler: Scheduler | None = None
        if config.sched == "onecycle":
            self._scheduler = OneCycle(optimizer, num_epochs * steps_per_epoch)
        elif config.sched != "constant" or config.warmup_epochs or any("lr_scale" in g for g in optimizer.param_groups):
            sched = "multistep" if config.sched == "constant" else config.sched
            prefix = config.warmup_epochs if config.warmup_prefix else 0
            if prefix >= num_epochs:
                raise Refused(
                    f"schedule.warmup_epochs {prefix:g} leaves none of the run's {num_epochs} epochs to the cosine "
                    "after it; lower it, or set warmup_prefix=false"
                )
            self._scheduler, _ = create_scheduler_v2(
                optimizer,
                sched=sched,
                num_epochs=num_epochs - prefix,  # type: ignore[arg-type]
                warmup_epochs=config.warmup_epochs,  # type: ignore[arg-type]
                warmup_prefix=config.warmup_prefix,
                warmup_lr=config.warmup_lr,
                min_lr=config.min_lr,
                # timm's multistep drops the rate one step early; half a step more makes it exact.
                decay_milestones=[epoch + 0.5 / steps_per_epoch for epoch in config.milestones],  # type: ignore[misc]
                decay_rate=config.decay_rate,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )

    def set_step(self, step: int) -> None:
        """Set the rate for the update of `step` (0 for the first)."""
        if self._scheduler is not None:
            self._scheduler.step_update(step)

    @property
    def rate(self) -> float:
        """Return the schedule's current rate; with `layer_decay`, each layer has a fraction of it."""
        group = max(self._optimizer.param_groups, key=lambda group: group.get("lr_scale", 1.0))
        return float(group["lr"] / group.get("lr_scale", 1.0))


class OneCycle(Scheduler):
    """Smith's one-cycle policy as in PyTorch's OneCycleLR, but stateless.

    Cosine, 30 % rise, from 1/25 of the peak to 1/250,000, with the momentum (or Adam's first beta) going 0.95 - 0.85 -
    0.95 against it. Source: Smith and Topin, "Super-Convergence", arXiv 1708.07120.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, num_steps: int, rise: float = 0.3) -> None:
        self.peak = max(1.0, rise * num_steps - 1)
        self.last = max(self.peak + 1, num_steps - 1)
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.step_update(0)

    def _fraction(self, step: int) -> tuple[float, bool]:
        """Return how far along the cosine of the current phase a step is, and whether that is the rise."""
        if step <= self.peak:
            return step / self.peak, True
        return min(1.0, (step - self.peak) / (self.last - self.peak)), False

    def _get_lr(self, t: int) -> list[float]:
        fraction, rising = self._fraction(t)
        start, end = (1 / 25, 1.0) if rising else (1.0, 1 / 25 / 1e4)
        return [base * _cosine(start, end, fraction) for base in self.base_values]

    def _set_momentum(self, step: int) -> None:
        fraction, rising = self._fraction(step)
        high, low = CYCLED_MOMENTUM
        momentum = _cosine(high, low, fraction) if rising else _cosine(low, high, fraction)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the rate and the momentum for a step."""
        super().step_update(num_updates)
        self._set_momentum(num_updates)


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * fraction))

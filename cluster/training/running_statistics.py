"""Batch norm's running statistics: after every step, on every rank, those that one worker would have.

A rank passes a slice of the step's micro-batches through its networks, and its running means and variances move with
these only. Were one rank's kept, as is usual, what is validated and deployed would depend on the number of workers:
with 8 workers, it would know an eighth of the images.

Each pass moves a statistic r to (1 - m) r + m s, with the layer's momentum m and the micro-batch's own s. That is
linear in r and in every s. So what all passes, one after another, would have left follows from the values before the
step and the sum of what each rank's passes added, times (1 - m) for each pass of later ranks.

Not here: other buffers that a network changes in training; `Rank.share_buffers` gives every rank those of rank 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.assembly import Assembly


class RunningStatistics:
    """Merges the running statistics of all ranks, once per step; a single rank's are left as they are."""

    def __init__(self, run: Assembly, network: nn.Module) -> None:
        self.rank, self.mine, self.in_all = run.rank, run.micro_batches, run.batches.num_micro_batches
        merged = network.modules() if run.rank.world_size > 1 else ()
        self.layers = [layer for layer in merged if isinstance(layer, _BatchNorm) and moves_alone(layer)]
        self.tensors = [tensor for layer in self.layers for tensor in statistics_of(layer)]
        self.counts = [layer.num_batches_tracked for layer in self.layers if layer.num_batches_tracked is not None]
        if self.layers:
            kept = [1 - (layer.momentum or 0) for layer in self.layers]
            sizes = [len(mean) + len(variance) for mean, variance in map(statistics_of, self.layers)]
            repeats = torch.tensor(sizes, device=run.rank.device)
            self.kept = torch.tensor(kept, device=run.rank.device).repeat_interleave(repeats)  # of r, at each pass
            self.layer_of = torch.arange(len(sizes), device=run.rank.device).repeat_interleave(repeats)

    def begin_step(self) -> None:
        """Keep the statistics as they are before the step's first pass."""
        if self.layers:
            self.before, self.counts_before = torch.cat(self.tensors), torch.stack(self.counts)

    @torch.no_grad()
    def end_step(self) -> None:
        """Leave in every layer what all ranks' passes would have, one after another."""
        if not self.layers:
            return
        passes = (torch.stack(self.counts) - self.counts_before).float()  # of this rank, through each layer
        # A network may use a layer more than once in a pass, and does so equally often in each.
        later = passes * ((self.in_all - self.mine.stop) / len(self.mine))
        added = (torch.cat(self.tensors) - self.before * self._kept_by(passes)) * self._kept_by(later)
        totals = self.rank.add_up(torch.cat([added, passes]))
        added, passes = totals.split([len(added), len(passes)])
        merged = self.before * self._kept_by(passes) + added
        torch._foreach_copy_(self.tensors, list(merged.split([len(tensor) for tensor in self.tensors])))
        torch._foreach_copy_(self.counts, list((self.counts_before + passes.long()).unbind()))

    def _kept_by(self, passes: Tensor) -> Tensor:
        """Return the share of each statistic [C] that is left after `passes` passes through each layer [L]."""
        return self.kept ** passes[self.layer_of]


def moves_alone(layer: _BatchNorm) -> bool:
    """Return whether each pass of a rank moves the layer's statistics by its momentum, whatever other ranks pass.

    A momentum of None averages over the whole run; synchronised batch norm has the same statistics everywhere.
    """
    return (
        layer.running_mean is not None
        and layer.num_batches_tracked is not None
        and layer.momentum is not None
        and not isinstance(layer, nn.SyncBatchNorm)
    )


def statistics_of(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return a layer's running mean and variance, each [C]."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var

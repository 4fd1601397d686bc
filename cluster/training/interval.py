"""What a run adds up between two rows of its metrics: on the device, without waiting for it.

Not here: what is measured, and where the rows go (`cluster.training.recorder`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cluster.rank import Rank


class Interval:
    """The sums since the last row: of the values of micro-batches, and of the gradient's norm, which all ranks share.

    Those of a step come in when it ends. num_values: of a micro-batch. skips: whether a step that is not finite is left
    out, as the run leaves it out.
    """

    def __init__(self, rank: Rank, num_values: int, skips: bool) -> None:
        self.rank, self.skips = rank, skips
        self.values = torch.zeros(1 + num_values, dtype=torch.float64, device=rank.device)  # after their weight
        self.of_step = torch.zeros_like(self.values)  # likewise, of the step that has not ended
        self.norms = torch.zeros(2, dtype=torch.float64, device=rank.device)  # after their number

    def add(self, values: Sequence[Tensor], weight: float) -> None:
        """Add what a micro-batch gave, scalars; weight: its share of a whole global batch."""
        self.of_step += _behind_one(values) * weight

    def end_step(self, norm: Tensor) -> None:
        """Take in the micro-batches of a step, and the norm of its whole gradient."""
        values, norms = self.of_step, _behind_one([norm])
        if self.skips:  # all of the step, or nothing
            is_counted = values.isfinite().all() & norms.isfinite().all()
            values, norms = (torch.where(is_counted, found, torch.zeros_like(found)) for found in (values, norms))
        self.values += values
        self.norms += norms
        self.of_step.zero_()

    def end(self) -> list[float]:
        """Return the means over steps and ranks, the norm's last, and start over. 0 where every step was left out."""
        *values, count, norms = self.so_far()
        weight, *sums = values
        # Where the weight is 0, so are the sums. It may be below 1: an epoch's last batch counts by its size.
        means = [*(value / (weight or 1.0) for value in sums), norms / (count or 1.0)]
        self.values.zero_()
        self.norms.zero_()
        return means

    def so_far(self) -> list[float]:
        """Return the sums over all ranks, for a checkpoint to hold; waits for the device."""
        return [*self.rank.add_up(self.values.clone()).tolist(), *self.norms.tolist()]

    def restore(self, sums: Sequence[float]) -> None:
        """Go on with the sums that a checkpoint holds; one of an earlier version holds none."""
        if sums:
            self.norms += self.norms.new_tensor(sums[-2:])
            if self.rank.first:  # which has them for all ranks
                self.values += self.values.new_tensor(sums[:-2])


def _behind_one(values: Sequence[Tensor]) -> Tensor:
    """Return 1 and the values."""
    return torch.stack([torch.ones_like(values[0], dtype=torch.float64), *(value.double() for value in values)])

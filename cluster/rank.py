"""One rank among its peers: who it is, its device, and the few collectives that the training loop needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Rank:
    """number of world_size, on its device. CUDA devices are numbered within this worker's CUDA_VISIBLE_DEVICES."""

    number: int
    world_size: int
    device: torch.device

    @classmethod
    def of_this_worker(cls) -> Rank:
        """Return the rank that Ray Train made this process."""
        import ray.train.torch  # here alone: what needs no cluster runs on machines without Ray

        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    @property
    def first(self) -> bool:
        return self.number == 0

    def add_up(self, totals: Tensor) -> Tensor:
        """Sum the totals over ranks, in place and on every rank; return them."""
        if self.world_size > 1:
            dist.all_reduce(totals)
        return totals

    def gather(self, values: Tensor) -> Tensor:
        """Return the values [n] of every rank, [world_size, n], on every rank."""
        if self.world_size == 1:
            return values[None]
        everyone = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(everyone, values)
        return torch.stack(everyone)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0: batch norm's running statistics are rank 0's own."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def slice_of(self, total: int) -> range:
        """Return this rank's contiguous share of `total` things, no two shares differing by more than one."""
        return range(self.number * total // self.world_size, (self.number + 1) * total // self.world_size)


def set_up_torch(deterministic: bool) -> None:
    """Let kernels give the same bits twice, where asked for."""
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging aid that goes with it fills every new tensor; nothing here reads such memory: the bits are the same.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seed dropout and the like as a pure function of (seed, step, number of the micro-batch in the global batch).

    Nothing to restore after a crash, and no dependence on the number of workers.
    """
    state = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)
    # Not torch.manual_seed: where CUDA is not initialised that formats the caller's stack at every call.
    torch.default_generator.manual_seed(int(state[0]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(int(state[0]))

"""One rank among its peers: its number, its device, and the few collectives that the training loop needs."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Rank:
    """One of `world_size` ranks, on its device, which is numbered within this worker's CUDA_VISIBLE_DEVICES."""

    number: int
    world_size: int
    device: torch.device

    @classmethod
    def of_this_worker(cls) -> Rank:
        """Return the rank that Ray Train made this process."""
        import ray.train.torch  # only here: what needs no cluster runs on machines without Ray

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
        """Give every rank the buffers of rank 0; batch norm's are the same on all ranks already."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def slice_of(self, total: int) -> range:
        """Return this rank's contiguous share of `total` items, no two shares differing by more than one."""
        return range(self.number * total // self.world_size, (self.number + 1) * total // self.world_size)


class LargestOfRanks:
    """The largest of small numbers, one from each rank, known to all one call later.

    It is exchanged during the next step: no rank waits for another, nor for more of its own GPU's work than the
    previous step.
    """

    def __init__(self, rank: Rank) -> None:
        self.rank = rank
        self.value = torch.zeros(1, dtype=torch.int32, device=rank.device)
        self.work: dist.Work | None = None
        is_cuda = rank.device.type == "cuda"
        self.copied = torch.cuda.Event() if is_cuda and rank.world_size > 1 else None
        self.on_host = torch.zeros(1, dtype=torch.int32, pin_memory=True) if self.copied else self.value

    def exchange(self, number: int) -> int:
        """Give this rank's number; return the largest of the previous call, or of this one where there is one rank."""
        if self.rank.world_size == 1:
            return number
        largest = self.finish()
        self.value.fill_(number)
        self.work = dist.all_reduce(self.value, dist.ReduceOp.MAX, async_op=True)
        if self.copied:
            self.work.wait()  # the stream waits, not this process
            self.on_host.copy_(self.value, non_blocking=True)
            self.copied.record()
        return largest

    def finish(self) -> int:
        """Wait for the pending exchange; return the largest of the last call, 0 where there was none."""
        if self.copied:
            self.copied.synchronize()
        elif self.work is not None:
            self.work.wait()
        return int(self.on_host.item())


def set_up_torch(deterministic: bool) -> None:
    """Make kernels deterministic, if asked for. Call it before the process's first matrix product on a GPU."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, at that product
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # A debugging aid that comes with it fills every new tensor; no code here reads such memory: the bits are the same.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seed dropout and the like as a pure function of (seed, step, number of the micro-batch in the global batch).

    Nothing to restore after a crash, and no dependence on the number of workers.
    """
    state = np.random.SeedSequence([seed, step, micro_batch]).generate_state(1, np.uint64)
    # Not torch.manual_seed: where CUDA is not initialised that formats the caller's stack at every call.
    torch.default_generator.manual_seed(int(state[0]))
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(int(state[0]))

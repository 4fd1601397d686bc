"""Running statistics of several ranks are those of one worker that passes all micro-batches itself."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cluster.training.running_statistics import RunningStatistics

DEVICE = torch.device("cpu")


class Sum:
    """What the threads of several ranks add up together."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier, self.parts = threading.Barrier(num_ranks), {}

    def of(self, number: int, totals: Tensor) -> Tensor:
        self.parts[number] = totals.clone()
        self.barrier.wait()
        total = torch.stack([self.parts[key] for key in sorted(self.parts)]).sum(0)
        self.barrier.wait()
        return totals.copy_(total)


def run_of(number: int, num_ranks: int, num_micro_batches: int, together: Sum) -> Any:
    cut = [part * num_micro_batches // num_ranks for part in (number, number + 1)]
    rank = SimpleNamespace(world_size=num_ranks, device=DEVICE, add_up=lambda totals: together.of(number, totals))
    batches = SimpleNamespace(num_micro_batches=num_micro_batches)
    return SimpleNamespace(rank=rank, micro_batches=range(*cut), batches=batches)


class Network(nn.Module):
    """Layers of several momenta: one is used twice a pass, one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.BatchNorm2d(3), nn.BatchNorm2d(3, momentum=0.3)
        self.frozen, self.last = nn.BatchNorm2d(3), nn.BatchNorm1d(3, momentum=1.0)

    def forward(self, images: Tensor) -> Tensor:
        self.frozen.eval()
        maps = self.twice(self.first(images).relu())
        return self.last(self.frozen(self.twice(maps.relu())).mean((2, 3)))


def buffers(network: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def train(network: nn.Module, steps: Tensor, run: Any) -> None:
    statistics = RunningStatistics(run, network)
    for micro_batches in steps:
        statistics.begin_step()
        for number in run.micro_batches:
            network(micro_batches[number])
        statistics.end_step()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_have_what_one_worker_would_have(num_ranks):
    """Five micro-batches a step, so that the ranks' shares differ; their means do, too, and grow from step to step."""
    torch.manual_seed(0)
    steps = torch.randn(4, 5, 6, 3, 4, 4) + torch.arange(20.0).reshape(4, 5, 1, 1, 1, 1)
    network = Network()
    network.first.running_mean.fill_(5.0)
    together = Sum(num_ranks)
    ranks = [copy.deepcopy(network) for _ in range(num_ranks)]
    threads = [
        threading.Thread(target=train, args=(one, steps, run_of(number, num_ranks, 5, together)))
        for number, one in enumerate(ranks)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    train(network, steps, run_of(0, 1, 5, together))
    alone = buffers(network)
    assert alone["twice.num_batches_tracked"] == 40
    for one in ranks:
        torch.testing.assert_close(buffers(one), alone, rtol=1e-5, atol=1e-5)
        assert buffers(one).keys() == alone.keys()
    for name, buffer in buffers(ranks[0]).items():
        assert torch.equal(buffer, buffers(ranks[-1])[name])


def test_one_rank_keeps_its_bits():
    """Nothing is merged, and nothing is kept meanwhile."""
    run = run_of(0, 1, 2, Sum(1))
    statistics = RunningStatistics(run, Network())
    statistics.begin_step()
    statistics.end_step()
    assert not statistics.layers

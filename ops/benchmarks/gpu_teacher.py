"""What a teacher that runs in every step costs on a GPU, and what would reduce that.

Not here: the other parts, and how all of them are run (`ops.benchmarks.gpu`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cluster.assembly import Assembly
from cluster.precision import autocast
from cluster.training.loop import ForwardBackward, new_state
from kdcore.batch import Batch
from ops.benchmarks.gpu_bench import PAIRS, Bench, held


def streams(bench: Bench) -> dict[str, Any]:
    """Compare running the teacher before the student with running it on the next batch during the student's pass."""
    found = {}
    for pair in PAIRS:
        run = bench.assembled(pair)
        passes = ForwardBackward(run, new_state(run).distiller)
        found[pair] = bench.milliseconds(
            {"before": asked_before(run, passes, held(run)), "beside": asked_beside(run, passes, held(run), bench)}
        )
    return found


def asked_before(run: Assembly, passes: ForwardBackward, batches: Iterator[Batch]) -> Callable[[], object]:
    """Return a pass with the teacher's forward pass first, on the same stream."""
    return lambda: passes(next(batches), 1.0, True)


def asked_beside(
    run: Assembly, passes: ForwardBackward, batches: Iterator[Batch], bench: Bench
) -> Callable[[], object]:
    """Return a pass during which the teacher answers for the next batch, on a stream of its own."""
    teacher = run.teachers.single
    if bench.device.type != "cuda":
        return asked_before(run, passes, batches)
    side = torch.cuda.Stream(bench.device)
    current = torch.cuda.current_stream(bench.device)

    def answered(batch: Batch) -> Batch:
        side.wait_stream(current)
        with torch.cuda.stream(side), autocast(run.config, run.rank):
            targets = teacher(batch)
        return batch.with_targets(targets)

    ahead = answered(next(batches))

    def call() -> None:
        nonlocal ahead
        current.wait_stream(side)
        batch, ahead = ahead, answered(next(batches))
        logits = None if batch.targets is None else batch.targets.logits
        assert logits is not None, "the teacher has answered"
        logits.record_stream(current)
        passes(batch, 1.0, True)

    return call


def weights(bench: Bench) -> dict[str, Any]:
    """Compare a frozen teacher whose weights are cast in every pass with one whose weights stay cast.

    launches: operations that each pass dispatches; same_logits: whether both give the same bits.
    """
    found = {}
    for pair in PAIRS:
        run = bench.assembled(pair)
        images, network = next(held(run)).images, run.teachers.single.model
        networks = {"cast": network, "kept": keep_in_bfloat16(copy.deepcopy(network))}
        same = torch.equal(*(inferred(network, images) for network in networks.values()))
        calls: dict[str, Callable[[], object]]
        calls = {name: partial(inferred, network, images) for name, network in networks.items()}
        launches = {name: num_dispatched(call) for name, call in calls.items()}
        found[pair] = {**bench.milliseconds(calls), "launches": launches, "same_logits": same}
    return found


def keep_in_bfloat16(network: nn.Module) -> nn.Module:
    """Keep the weights of plain convolutions and linear layers as autocast casts them; return the network."""
    for part in network.modules():
        if type(part) in (nn.Conv2d, nn.Linear):
            part.to(torch.bfloat16)
    return network


@torch.no_grad()
def inferred(network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits under autocast to bfloat16, whatever the recipe says."""
    with torch.autocast(images.device.type, torch.bfloat16):
        logits: Tensor = network(images)
    return logits


class Dispatched(TorchDispatchMode):
    """Counts the operations that are dispatched while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return function(*args, **(kwargs or {}))


def num_dispatched(call: Callable[[], object]) -> int:
    """Return the number of operations that a call dispatches, each of which launches a kernel or makes a view."""
    with Dispatched() as mode:
        call()
    return mode.number

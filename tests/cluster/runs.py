"""What tests ask of runs: the losses of their steps, and the weights that they leave. And a network of their own."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from cluster.training.launch import RunResult
from cluster.training.loop import TrainingLoop


class Branching(nn.Module):
    """A network whose way depends on the images' values."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        return self.classifier(means if bool(means.sum() > 0) else -means)


def losses_of(loop: TrainingLoop, until: int) -> list[float]:
    """Of every micro-batch up to a step, the exact numbers."""
    losses: list[float] = []
    batches = loop.run.train_batches(loop.state.step)
    while loop.state.step < until:
        loop.step(batches, lambda _number, _batch, output: losses.append(output.loss.item()))
    return losses


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    """The student's, as the run has written them."""
    return safetensors.torch.load_file(Path(run.run_dir) / "student.safetensors")


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

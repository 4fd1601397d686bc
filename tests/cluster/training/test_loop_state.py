"""What a run carries from step to step beside its weights: the moving average, the steps left out, the time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.reading import parse
from cluster.training.loop import TrainingLoop, new_state

CPU = torch.device("cpu")
SKIPPING = {"train__on_nonfinite": "skip", "train__max_skipped": 0.2, "train__ema_decay": 0.9}


@pytest.fixture
def begin(recipe):
    """A function that gives the loop of a run in this process, with fields of the recipe changed."""

    def made(**changes) -> TrainingLoop:
        config = parse(recipe(**{"scaling__num_workers": 0, "data__loader": "reference"} | changes))
        run = assemble(config, Rank(0, 1, CPU))
        return TrainingLoop(run, new_state(run))

    return made


def tensors(loop: TrainingLoop) -> dict[str, torch.Tensor]:
    return {
        **loop.state.distiller.state_dict(),
        **{f"ema.{k}": v for k, v in loop.state.evaluated.state_dict().items()},
    }


def take(loop: TrainingLoop, steps: int) -> None:
    batches = loop.run.train_batches(loop.state.step)
    for _ in range(steps):
        loop.step(batches)


@pytest.mark.parametrize("warms_up", [True, False])
def test_the_moving_average_warms_up(begin, warms_up):
    """By timm's schedule: the decay of update n + 1 is 1 - (1 + n)^(-2/3), up to the recipe's."""
    loop = begin(train__ema_decay=0.9999, train__ema_warmup=warms_up)
    batches = loop.run.train_batches(0)
    expected = torch.zeros(())
    for decay in (0.0, 1 - 2 ** (-2 / 3), 1 - 3 ** (-2 / 3)) if warms_up else (0.0, 0.9999, 0.9999):
        loop.step(batches)
        weight = loop.state.distiller.student.conv1.weight.detach()
        expected = decay * expected + (1 - decay) * weight
        torch.testing.assert_close(loop.state.ema.module.conv1.weight, expected)


def test_a_run_that_left_a_step_out_resumes_with_the_same_bits(begin, tmp_path: Path):
    """The moving average counts the steps that were taken; the count is of the run, not of the process."""
    loop = begin(**SKIPPING)
    poison = loop.state.distiller.student.conv1.weight.register_hook(lambda gradient: gradient * float("nan"))
    take(loop, 1)
    poison.remove()
    loop.state.train_seconds = 12.5
    loop.state.snapshot({}).write(LocalFileSystem(), str(tmp_path / "early"))
    take(loop, 3)
    resumed = begin(**SKIPPING)
    resumed.state.restore(tmp_path / "early", {})
    assert (resumed.state.step, resumed.state.skipped_steps, resumed.state.train_seconds) == (1, 1, 12.5)
    take(resumed, 3)
    ours, theirs = tensors(resumed), tensors(loop)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)

"""One run on the same images in every container: the same losses, whoever resumes it where, on 1 and 2 ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble, facts
from cluster.rank import Rank
from cluster.recipe import parse
from cluster.training.loop import TrainingLoop, new_state
from pipelines.loaders.base import Batch
from tests.conftest import small_recipe, write_image_folder
from tests.pipelines.containers import CONTAINERS

CPU = torch.device("cpu")
STEPS, KILLED_AT = 20, 9  # of 6 an epoch: killed in mid-epoch

Begin = Callable[..., Assembly]


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Begin:
    """A function that gives a run's parts on a container, each written once."""
    images = write_image_folder(tmp_path_factory.mktemp("images"))
    roots: dict[str, Path] = {}

    def make(container: str, rank: Rank | None = None) -> Assembly:
        if container not in roots:
            root = roots[container] = tmp_path_factory.mktemp("container")
            for split in ("train", "val"):
                CONTAINERS[container](images, split, root)
        changes = {"train__epochs": 4, "scaling__num_workers": 0, "views__mixup_alpha": 0.4}
        recipe = small_recipe(roots[container], roots[container] / "out", **changes)
        return assemble(parse(recipe), rank or Rank(0, 1, CPU))

    return make


def losses_of(loop: TrainingLoop, until: int) -> list[float]:
    """Of every micro-batch up to a step, the exact numbers."""
    losses: list[float] = []
    batches = loop.run.train_batches(loop.state.step)
    while loop.state.step < until:
        loop.step(batches, lambda _number, _batch, output: losses.append(output.loss.item()))
    return losses


@pytest.fixture(scope="module")
def undisturbed(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> tuple[Assembly, list[float], Path]:
    """The run on the image folder, its losses, and its checkpoint of the step at which others go on."""
    run, folder = begin("folder"), tmp_path_factory.mktemp("checkpoint")
    loop = TrainingLoop(run, new_state(run))
    before = losses_of(loop, KILLED_AT)
    loop.state.snapshot(facts(run)).write(LocalFileSystem(), str(folder))
    return run, before + losses_of(loop, STEPS), folder


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "folder"])
def test_the_same_run(container: str, begin: Begin, undisturbed: tuple[Assembly, list[float], Path]) -> None:
    """Fingerprints, 20 steps' losses, and the losses after a kill whose checkpoint was written on the folder."""
    expected, losses, checkpoint = undisturbed
    run = begin(container)
    for split, source in run.indexes.items():
        assert source.fingerprint == expected.indexes[split].fingerprint
    assert losses_of(TrainingLoop(run, new_state(run)), STEPS) == losses
    resumed = new_state(run)
    resumed.restore(checkpoint, facts(run))
    again = losses_of(TrainingLoop(run, resumed), STEPS)
    assert again == losses[-len(again) :]
    assert len(again) == (STEPS - KILLED_AT) * 2


@pytest.mark.parametrize("container", CONTAINERS)
def test_two_ranks_see_what_one_sees(container: str, begin: Begin) -> None:
    """The batches of two ranks are those of one, bit for bit, from a step in the middle of an epoch on."""
    alone = batches_of(begin(container), 2 * 8)
    ranks = [batches_of(begin(container, Rank(number, 2, CPU)), 8) for number in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, theirs in zip(alone, together, strict=True):
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)


def batches_of(run: Assembly, num: int) -> list[Batch]:
    batches = run.train_batches(3)
    return [next(batches) for _ in range(num)]

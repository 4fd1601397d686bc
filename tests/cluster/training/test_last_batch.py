"""`train.last_batch: keep`: every image in every epoch, and each step's gradient is the mean over its own images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from pyarrow.fs import LocalFileSystem
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cluster.assembly import Assembly, assemble
from cluster.cache.job import build
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.sweep.runs import validations_of
from cluster.sweep.trial import validations
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.launch import launch
from cluster.training.loop import ForwardBackward, TrainingLoop, new_state
from cluster.training.worker import DATA_PARALLEL
from kdcore.errors import Refused
from ops.reproduce.lane import Lane
from pipelines.loaders.base import Request
from tests.processes import run_ranks

CPU = torch.device("cpu")
STEPS, LAST = 6, 2  # 45 images in batches of 20 = 2 x 10, and one of 5 = 2 + 3; twice
VIT = {
    "model": "vit_tiny_patch16_224",
    "args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
}
METHOD = [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 2.0, "temperature": 2.0}]
FEATURES = [{"term": "fitnet", "weight": 1.0, "pairs": [{"student": "blocks.0", "teacher": "blocks.0"}]}]

Make = Callable[..., RunConfig]


@pytest.fixture
def keeping(recipe: Callable[..., dict[str, Any]]) -> Make:
    """A function that gives the recipe: networks whose answer to an image does not depend on the others."""

    def make(**changes: Any) -> RunConfig:
        settings = {
            "train": {"epochs": 2, "batch_size": 20, "micro_batch": 10, "last_batch": "keep"},
            "data__images_per_class": 15,
            "data__loader": "reference",
            "scaling__num_workers": 0,
            "student": VIT,
            "teacher": VIT | {"random": True},
            "method": METHOD,
            "views__num_views": 2,
        }
        return parse(recipe(**settings | changes))

    return make


class WatchedLoop(TrainingLoop):
    """The loop, with the whole gradient of its last step."""

    gradients: dict[str, Tensor]

    def clip_gradient(self) -> Tensor:
        self.gradients = {
            name: p.grad.clone() for name, p in self.state.distiller.named_parameters() if p.grad is not None
        }
        return super().clip_gradient()


def steps_of(loop: TrainingLoop, until: int) -> list[tuple[list[int], float]]:
    """Of every micro-batch up to a step: its sample ids, and its loss."""
    found: list[tuple[list[int], float]] = []
    batches = loop.run.train_batches(loop.state.step)
    while loop.state.step < until:
        loop.step(batches, lambda _number, batch, output: found.append((batch.sample_ids.tolist(), output.loss.item())))
    return found


def test_the_gradient_is_the_mean_over_the_images_that_are_there(keeping: Make) -> None:
    """Against cross-entropy and Hinton's formula over the five images, written out; a whole batch likewise."""
    for step in (LAST - 1, LAST):
        run = assemble(keeping(), Rank(0, 1, CPU))
        loop = WatchedLoop(run, new_state(run))
        steps_of(loop, step)
        positions = np.arange(step * 20, min(45, step * 20 + 20))
        request = Request(run.plan.views_at(0, positions), run.plan.order(0, positions))
        (batch,) = run.loader("train", run.plan, 20).load([request])
        assert len(batch) == (5 if step == LAST else 20)
        distiller = loop.state.distiller.train()
        student, teacher = run.student(batch.images), run.teachers.single.model(batch.images).detach()
        log_q, p = F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1)
        hard = -F.log_softmax(student, 1)[torch.arange(len(batch)), batch.labels]
        total = (0.5 * hard + 2.0 * 4 * (p * (p.log() - log_q)).sum(1)).mean()
        expected = torch.autograd.grad(total, list(distiller.parameters()))
        steps_of(loop, step + 1)
        for (name, _), gradient in zip(distiller.named_parameters(), expected, strict=True):
            torch.testing.assert_close(loop.gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_every_image_in_every_epoch(keeping: Make, tmp_path: Path) -> None:
    """A whole run: what it has shown, what it counts, and how a sweep reads its epochs."""
    changes = {"views__mixup_alpha": 0.4, "tracking__record_batches": True, "data__held_out": 0.2}
    config = keeping(
        **changes,
        data__images_per_class=None,
        train={**keeping().train.model_dump(), "batch_size": 16, "micro_batch": 8},
    )
    result = launch(config)  # 39 images: 16, 16, 7 = 4 + 3
    folder = RunFolder.of(config)
    rows = read_journal(folder.batches(0))
    for epoch in range(2):
        shown = [i for row in rows if row["step"] // 3 == epoch for i in row["sample_ids"]]
        assert sorted(shown) == list(range(39))
    assert [len(row["sample_ids"]) for row in rows[:6]] == [8, 8, 8, 8, 4, 3]
    assert result.steps == STEPS
    assert result.images_per_second * result.train_seconds == pytest.approx(78)
    losses = [row["loss"] * len(row["sample_ids"]) for row in rows[4:8]]
    mean = sum(losses) / sum(len(row["sample_ids"]) for row in rows[4:8])
    recorded = {row["step"]: row["train/loss"] for row in read_journal(folder.metrics) if "train/loss" in row}
    assert recorded[4] == pytest.approx(mean, rel=1e-6)
    assert [(row["epoch"], row["step"], row["last"]) for row in validations(validations_of(config))] == [
        (1, 3, False),
        (2, 6, True),
    ]


@pytest.mark.parametrize("at", [2, 3, 5])
def test_it_goes_on_to_the_bit(keeping: Make, tmp_path: Path, at: int) -> None:
    """From before, behind, and in the second epoch before the smaller batch."""
    run = assemble(keeping(), Rank(0, 1, CPU))
    loop = TrainingLoop(run, new_state(run))
    steps_of(loop, at)
    loop.state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(tmp_path / "checkpoint"))
    expected = steps_of(loop, STEPS)
    again = assemble(keeping(), Rank(0, 1, CPU))
    state = new_state(again)
    state.restore(tmp_path / "checkpoint", checkpoint_facts(again))
    assert steps_of(TrainingLoop(again, state), STEPS) == expected
    dropping = assemble(keeping(train__last_batch="drop"), Rank(0, 1, CPU))
    with pytest.raises(Refused, match="total_steps"):
        new_state(dropping).restore(tmp_path / "checkpoint", checkpoint_facts(dropping))


def test_cached_is_online(keeping: Make, tmp_path: Path) -> None:
    """From a cache of exact numbers: the same images, and the same losses to rounding."""
    torch.manual_seed(7)
    cache = {"cache": {"dir": str(tmp_path / "cache"), "dtype": "float32", "features": "float32"}}
    online = keeping(**cache)
    teacher = assemble(online, Rank(0, 1, CPU)).teachers.single
    torch.save(teacher.model.state_dict(), tmp_path / "teacher.pt")
    weights = VIT | {"checkpoint": str(tmp_path / "teacher.pt")}
    online = keeping(**cache, teacher=weights)
    build(online)
    runs = [
        assemble(keeping(**cache, teacher=weights | {"source": source}), Rank(0, 1, CPU))
        for source in ("online", "cache")
    ]
    (ids, losses), (cached_ids, cached_losses) = (
        zip(*steps_of(TrainingLoop(run, new_state(run)), STEPS), strict=True) for run in runs
    )
    assert ids == cached_ids
    assert losses == pytest.approx(cached_losses, rel=1e-4)


def test_every_loader_makes_the_smaller_batch(keeping: Make, tmp_path: Path) -> None:
    """The resident loader's pictures are the reference's, DALI's are as near as they always are."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 15), ("val", 2)):
        for label in range(3):
            folder = tmp_path / "images" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(num):
                smooth = np.kron(rng.integers(0, 255, (4, 4, 3)), np.ones((4, 4, 1)))
                Image.fromarray(smooth.astype(np.uint8)).save(folder / f"{number}.png")
    batches = {}
    for loader in ("reference", "resident", "dali"):
        views = {"size": 16, "crop": "padded", "padding": 2}
        config = keeping(views=views, data__root=str(tmp_path / "images"), data__loader=loader)
        batches[loader] = list(assemble(config, Rank(0, 1, CPU)).train_batches(0))
        assert [len(batch) for batch in batches[loader]] == [10, 10, 10, 10, 2, 3] * 2
    for reference, resident, dali in zip(*batches.values(), strict=True):
        assert torch.equal(reference.images, resident.images)
        assert torch.equal(reference.sample_ids, dali.sample_ids)
        assert float((reference.images - dali.images).abs().max()) < 0.05


def train_rank(number: int, config: RunConfig, folder: str) -> None:
    """One of two ranks, as the workers are: every step's gradient."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    run = assemble(config, Rank(number, 2, CPU), reuse_index=True)
    state = new_state(run)
    model = DistributedDataParallel(state.distiller, **DATA_PARALLEL)
    loop = WatchedLoop(run, state, ForwardBackward(run, model, model.no_sync))
    torch.save(gradients_of(loop), f"{folder}/{number}.pt")
    dist.destroy_process_group()


def gradients_of(loop: WatchedLoop) -> list[dict[str, Tensor]]:
    """Of every step, the whole gradient."""
    found, batches = [], loop.run.train_batches(0)
    while not loop.is_done:
        loop.step(batches)
        found.append(loop.gradients)
    return found


@pytest.mark.parametrize("method", [METHOD, FEATURES], ids=["logits", "features"])
def test_two_ranks_with_unequal_shares(keeping: Make, tmp_path: Path, method: list[dict[str, Any]]) -> None:
    """Two images here and three there: both ranks have the gradient that one has, which is the mean over the five.

    Features alone leave the classifier without a gradient, on both.
    """
    config = keeping(method=method)
    run: Assembly = assemble(config, Rank(0, 1, CPU))
    alone = gradients_of(WatchedLoop(run, new_state(run)))
    run_ranks(train_rank, config, str(tmp_path))
    for number in range(2):
        ours = torch.load(tmp_path / f"{number}.pt", weights_only=True)
        assert len(ours) == len(alone) == STEPS
        for step, expected in zip(ours, alone, strict=True):
            assert step.keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(step[name], gradient, rtol=1e-4, atol=1e-6)


def test_runs_side_by_side_refuse_it(keeping: Make) -> None:
    with pytest.raises(Refused, match="runs side by side take whole batches"):
        Lane(keeping(), CPU)

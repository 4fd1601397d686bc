"""A run on classes of 16, 6 and 2 images: weights of classes, and every class shown equally often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble
from cluster.cache.job import build
from cluster.images import open_data
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.rules import check_may_be_trained
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.loop import TrainingLoop, new_state
from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.loaders.base import Request
from tests.cluster.runs import losses_of
from tests.conftest import small_recipe, write_image_folder

CPU = torch.device("cpu")
STEPS, KILLED_AT = 12, 5  # 24 images in batches of 8: 3 steps an epoch
KD = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 1.0, "temperature": 2.0}]

Make = Callable[..., RunConfig]


@pytest.fixture
def long_tail(tmp_path: Path) -> Make:
    """A function that gives a recipe on such images."""
    images = write_image_folder(tmp_path / "images")
    for label, kept in ((1, 6), (2, 2)):
        for file in sorted((images / "train" / f"class{label}").iterdir())[kept:]:
            file.unlink()

    def make(**changes: Any) -> RunConfig:
        own = {"train__epochs": 4, "scaling__num_workers": 0, "data__loader": "reference", "data__sampling": "classes"}
        return parse(small_recipe(images, tmp_path / "out", **own | changes))

    return make


def assembled(config: RunConfig, number: int = 0, world_size: int = 1) -> Assembly:
    return assemble(config, Rank(number, world_size, CPU))


@pytest.mark.parametrize("mixed", [False, True])
def test_the_same_run_whoever_goes_on_with_it(long_tail: Make, tmp_path: Path, mixed: bool) -> None:
    """Exact shares, a killed run to the bit, and the batches of two ranks; mixed images likewise."""
    config = long_tail(**({"views__mixup_alpha": 0.4} if mixed else {}))
    run = assembled(config)
    batches = list(run.train_batches(0))
    for epoch in range(4):
        ids = np.concatenate([batch.sample_ids.numpy() for batch in batches[6 * epoch : 6 * epoch + 6]])
        assert Counter(run.indexes["train"].labels[ids].tolist()) == {0: 8, 1: 8, 2: 8}
    for batch in batches[:6]:  # each row in its own view, as if asked for alone
        for row in range(len(batch)):
            request = Request(int(batch.views[row]), batch.sample_ids[row : row + 1].numpy())
            (alone,) = run.train_loader().load([request])
            assert torch.equal(alone.images[0], batch.images[row])
            assert torch.equal(alone.labels[0], batch.labels[row])
    loop = TrainingLoop(run, new_state(run))
    losses_of(loop, KILLED_AT)
    loop.state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(tmp_path / "checkpoint"))
    again = assembled(config)
    state = new_state(again)
    state.restore(tmp_path / "checkpoint", checkpoint_facts(again))
    assert losses_of(TrainingLoop(again, state), STEPS) == losses_of(loop, STEPS)
    ranks = [list(assembled(config, number, 2).train_batches(0)) for number in range(2)]
    together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    for ours, theirs in zip(batches, together, strict=True):
        assert torch.equal(ours.sample_ids, theirs.sample_ids)
        assert torch.equal(ours.images, theirs.images)
    plain = assembled(long_tail(data__sampling="images"))
    with pytest.raises(Refused, match="views"):
        new_state(plain).restore(tmp_path / "checkpoint", checkpoint_facts(plain))


def test_one_cache_serves_every_sampling(long_tail: Make, tmp_path: Path) -> None:
    """Built without it; the losses are those of the teacher beside the student."""
    torch.manual_seed(7)
    teacher = {"model": "cifar_resnet8", "checkpoint": str(tmp_path / "teacher.pt")}
    cache = {"dir": str(tmp_path / "cache"), "dtype": "float32", "features": "float32"}
    own = {"method": KD, "views__num_views": 2, "cache": cache}
    random = assembled(long_tail(**own, teacher={"model": "cifar_resnet8", "random": True}))
    torch.save(random.teachers.single.model.state_dict(), tmp_path / "teacher.pt")
    build(long_tail(**own, teacher=teacher, data__sampling="images"))
    for sampling in ("classes", "sqrt"):
        losses = []
        for source in ("online", "cache"):
            run = assembled(long_tail(**own, teacher=teacher | {"source": source}, data__sampling=sampling))
            losses.append(losses_of(TrainingLoop(run, new_state(run)), STEPS))
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_weights_of_classes_reach_the_loss(long_tail: Make) -> None:
    """balanced counts the images that are trained on: 24 / (3 x 16), 24 / (3 x 6), 24 / (3 x 2)."""
    weighted = [{"term": "ce", "weight": 1.0, "class_weights": "balanced"}]
    run = assembled(long_tail(method=weighted, data__sampling="images"))
    distiller = run.distiller().eval()
    batch = next(run.train_batches(0))
    log_q = torch.log_softmax(run.student(batch.images), 1)[torch.arange(len(batch)), batch.labels]
    weights = torch.tensor([24 / 48, 24 / 18, 24 / 6])[batch.labels]
    torch.testing.assert_close(distiller(batch).loss, (-weights * log_q).mean())
    with pytest.raises(Refused, match=r"class_weights: there is no class 'class9'; did you mean class2"):
        assembled(long_tail(method=[{"term": "ce", "weight": 1.0, "class_weights": {"class9": 2}}])).distiller()


@pytest.mark.parametrize(
    ("kept", "held", "said"),
    [
        (2, [2, 1, 1], "data.held_out=0.1 is less than one image of 1 of the 3 classes: one image of each is held out"),
        (
            1,
            [2, 1, 0],
            "of 1 of the 3 classes: one image of each is held out, but none of the 1 that have fewer than two",
        ),
    ],
)
def test_small_classes_are_held_out_as_far_as_they_go(
    long_tail: Make, caplog: pytest.LogCaptureFixture, kept: int, held: list[int], said: str
) -> None:
    warn_once.cache_clear()
    config = long_tail(data__held_out=0.1, train__select="held_out")
    for file in sorted((Path(config.data.root) / "train" / "class2").iterdir())[kept:]:
        file.unlink()
    assert open_data(config)["held_out"].class_counts.tolist() == held
    assert [record.message[-len(said) :] for record in caplog.records] == [said]


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"data__window_shards": 2}, "data.window_shards"),
        ({"views__repeats": 2}, "views.repeats"),
        ({"views__sizes": [[1, 24]]}, "views.sizes"),
    ],
)
def test_other_rules_for_the_order_are_refused(long_tail: Make, changes: dict[str, Any], other: str) -> None:
    with pytest.raises(Refused, match=rf"data.sampling=classes shows an image again .* {other} has another rule"):
        check_may_be_trained(long_tail(**changes))

"""Every augmentation at once, with a teacher beside the student and with one from a cache: one run, whoever resumes it.

RandAugment, Mixup, CutMix, erasing and repeated augmentation; in mid-epoch, by 1 and 2 workers. What a kill of the
processes themselves adds is shown by `test_one_process`, `test_train` and `test_nodes`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from pyarrow.fs import LocalFileSystem

from cluster.assembly import Assembly, assemble
from cluster.cache.job import build
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.training.checkpoint import checkpoint_facts
from cluster.training.loop import TrainingLoop, new_state
from kdcore.batch import Batch
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from tests.cluster.runs import losses_of, same_bits
from tests.conftest import small_recipe, write_image_folder

CPU = torch.device("cpu")
STEPS, KILLED_AT = 12, 4  # of 6 an epoch, and 2 micro-batches each: killed in mid-epoch

EVERYTHING = {
    "views__auto_augment": "rand-m9-mstd0.5-inc1",
    "views__mixup_alpha": 0.4,
    "views__cutmix_alpha": 1.0,
    "views__erase_probability": 0.25,
    "views__erase_fill": "noise",
    "views__brightness": 0.4,
    "views__repeats": 2,
    "views__num_views": 4,
    "train__ema_decay": 0.9,
    "method": [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}],
    "scaling__num_workers": 0,
}
CASES = [(source, loader) for source in ("online", "cache") for loader in ("dali", "reference")]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], RunConfig]:
    """A function that gives the recipe with the teacher online or from a cache, which is built once for a loader."""
    folder = tmp_path_factory.mktemp("augmented")
    root = write_image_folder(folder / "images")
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(model.state_dict(), folder / "teacher.safetensors")
    built = set()

    def make(source: str, loader: str) -> RunConfig:
        teacher = {"model": "cifar_resnet8", "checkpoint": str(folder / "teacher.safetensors"), "source": source}
        cache = {"dir": str(folder / f"cache-{loader}"), "batch_size": 4, "rows_per_shard": 20}
        changes = {**EVERYTHING, "teacher": teacher, "cache": cache, "data__loader": loader}
        config = parse(small_recipe(root, folder / "out", **changes))
        if source == "cache" and loader not in built:
            build(config)
            built.add(loader)
        return config

    return make


def batches_of(config: RunConfig, rank: Rank, first_step: int) -> list[Batch]:
    return list(assemble(config, rank).train_batches(first_step))


def same(ours: Batch, theirs: Batch) -> bool:
    pairs = [(ours.images, theirs.images), (ours.labels, theirs.labels), (ours.sample_ids, theirs.sample_ids)]
    pairs.append((ours.views, theirs.views))
    assert (ours.targets is None) == (theirs.targets is None)
    if ours.targets is not None and theirs.targets is not None:
        pairs.append((ours.targets.logits, theirs.targets.logits))  # type: ignore[arg-type]
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(("source", "loader"), CASES)
def test_one_worker_and_two_see_the_same_from_any_step_on(
    source: str, loader: str, configure: Callable[[str, str], RunConfig]
) -> None:
    config = configure(source, loader)
    alone = batches_of(config, Rank(0, 1, CPU), 0)
    assert len(alone) == STEPS * 2
    assert [batch.targets is not None for batch in alone] == [source == "cache"] * len(alone)
    for step in (0, KILLED_AT):
        ranks = [batches_of(config, Rank(number, 2, CPU), step) for number in range(2)]
        together = [batch for pair in zip(*ranks, strict=True) for batch in pair]
        assert all(map(same, alone[2 * step :], together))
        assert len(together) == 2 * (STEPS - step)
    views = {view for batch in alone[:12] for view in batch.views.tolist()}
    assert views == {0, 1}, "two views of a sample in an epoch"


@pytest.mark.parametrize(("source", "loader"), CASES)
def test_killed_and_continued(
    source: str, loader: str, configure: Callable[[str, str], RunConfig], tmp_path: Path
) -> None:
    """The same losses, and the same bits of the weights and of their average."""
    run = assemble(configure(source, loader), Rank(0, 1, CPU))
    loop = TrainingLoop(run, new_state(run))
    before = losses_of(loop, KILLED_AT)
    loop.state.snapshot(checkpoint_facts(run)).write(LocalFileSystem(), str(tmp_path))
    after = losses_of(loop, STEPS)

    again: Assembly = assemble(configure(source, loader), Rank(0, 1, CPU))
    resumed = new_state(again)
    resumed.restore(tmp_path, checkpoint_facts(again))
    continued = TrainingLoop(again, resumed)
    assert losses_of(continued, STEPS) == after
    assert len(before) == 2 * KILLED_AT
    for part in ("distiller", "evaluated"):
        assert same_bits(getattr(continued.state, part).state_dict(), getattr(loop.state, part).state_dict())

"""Caches of images without labels, and of images whose training has another order."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.cache.job import build
from cluster.cache.verify import verify
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.training.launch import launch
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from pipelines.data.convert import PackJob, run_pack_job
from tests.conftest import small_recipe, write_image_folder

CPU = torch.device("cpu")
KD = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]
Recipes = Callable[..., RunConfig]


@pytest.fixture
def recipes(tmp_path: Path) -> Recipes:
    """A function that gives a recipe on the images at `root`, which builds a cache, or with cached=True reads it."""
    torch.manual_seed(7)
    teacher = build_model(ModelConfig(model="cifar_resnet8"), ("a", "b", "c"))
    safetensors.torch.save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")

    def make(root: Path, cached: bool = False, **changes: Any) -> RunConfig:
        own = {
            "teacher": {
                "model": "cifar_resnet8",
                "checkpoint": str(tmp_path / "teacher.safetensors"),
                "source": "cache" if cached else "online",
            },
            "cache": {"dir": str(tmp_path / "cache"), "batch_size": 8, "rows_per_shard": 20, "dtype": "float32"},
            "views__num_views": 2,
            "scaling__num_workers": 0,
            "method": KD,
        }
        return parse(small_recipe(root, tmp_path / "out", **own | changes))

    return make


def losses(config: RunConfig) -> list[float]:
    """Of every micro-batch, without learning."""
    run = assemble(config, Rank(0, 1, CPU))
    distiller = run.distiller().train()
    return [float(distiller(batch).loss.detach()) for batch in run.train_batches(0)]


@pytest.mark.parametrize("labelled", ["val", "train"])
def test_a_cache_of_images_without_labels(labelled: str, recipes: Recipes, tmp_path: Path) -> None:
    """Built, verified, and trained from, with the losses of the teacher beside the student."""
    images = write_image_folder(tmp_path / "images")
    root = tmp_path / "root"
    shutil.copytree(images / labelled, root / labelled)
    other = "train" if labelled == "val" else "val"
    (root / other).mkdir()
    for file in sorted((images / other).rglob("*.png")):
        shutil.copy(file, root / other / f"{file.parent.name}-{file.name}")
    manifest = build(recipes(root))
    assert {name: part.num_rows for name, part in manifest.plan.parts.items()} == {"train": 48, "val": 15}
    assert all(agreement.wrong == 0 for agreement in verify(recipes(root), 8, CPU))
    assert losses(recipes(root, cached=True)) == pytest.approx(losses(recipes(root)), rel=1e-6)
    metrics = launch(recipes(root, cached=True)).metrics
    assert 0 <= metrics["val/agreement"] <= 1
    assert ("val/top1" in metrics) == (labelled == "val")


def test_a_cache_is_for_every_order(recipes: Recipes, tmp_path: Path) -> None:
    """Built from a folder, read in windows of a pack: the answers belong to views. Mixed views belong to an order."""
    images = write_image_folder(tmp_path / "images")
    for split in ("train", "val"):
        job = PackJob(str(images), split, str(tmp_path / "pack"), str(tmp_path / "index"), 20_000)
        run_pack_job(job, job.prepare())
    build(recipes(images))
    in_windows = {"data__window_shards": 2}
    online = losses(recipes(tmp_path / "pack", **in_windows))
    assert losses(recipes(tmp_path / "pack", cached=True, **in_windows)) == pytest.approx(online, rel=1e-6)
    assert online != losses(recipes(tmp_path / "pack"))
    mixed = {"views__mixup_alpha": 0.4, "cache__dir": str(tmp_path / "mixed")}
    build(recipes(images, **mixed))
    with pytest.raises(Refused, match=r"views"):
        assemble(recipes(tmp_path / "pack", cached=True, **mixed, **in_windows), Rank(0, 1, CPU))
    build(recipes(tmp_path / "pack", **mixed | {"cache__dir": str(tmp_path / "own")}, **in_windows))
    own = mixed | {"cache__dir": str(tmp_path / "own")}
    online = losses(recipes(tmp_path / "pack", **own, **in_windows))
    assert losses(recipes(tmp_path / "pack", cached=True, **own, **in_windows)) == pytest.approx(online, rel=1e-6)

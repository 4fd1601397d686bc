"""A cache of a teacher whose maps lie channels-last holds them channels first; one from before is refused."""

from __future__ import annotations

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
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from pipelines.cache.manifest import Manifest, load_manifest

CPU = torch.device("cpu")
SWIN = {
    "img_size": 16,
    "window_size": 2,
    "embed_dim": 24,
    "depths": [1, 1],
    "num_heads": [1, 2],
}
PAIRS = [{"student": "layer2", "teacher": "layers.0"}]


@pytest.fixture
def fields(tmp_path) -> dict[str, Any]:
    """Of a recipe that builds a cache of a small Swin."""
    torch.manual_seed(7)
    model = build_model(ModelConfig(model="swin_tiny_patch4_window7_224", args=SWIN), ("a", "b", "c"))
    path = tmp_path / "teacher.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return {
        "teacher": {"model": "swin_tiny_patch4_window7_224", "args": SWIN, "checkpoint": str(path)},
        "views__num_views": 1,
        "cache": {"dir": str(tmp_path / "cache"), "features": "float32", "batch_size": 4},
        "scaling__num_workers": 0,
        "method": [{"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}],
    }


def reading(recipe: Any, fields: dict[str, Any]) -> RunConfig:
    return parse(recipe(**fields | {"teacher": fields["teacher"] | {"source": "cache"}}))


def first_loss(config: RunConfig) -> float:
    run = assemble(config, Rank(0, 1, CPU))
    return float(run.distiller().train()(next(iter(run.train_batches(0)))).loss.detach())


def as_of_before(directory: Path) -> Manifest:
    """Make the cache one from before: with the Swin's own maps, and nothing said of them."""
    plain = load_manifest(directory).model_dump(mode="json")
    del plain["plan"]["identity"]["teacher"]["channels_first"]
    for column in plain["plan"]["parts"]["train"]["columns"]:
        if len(column["shape"]) == 3:
            column["shape"] = [*column["shape"][1:], column["shape"][0]]
    return Manifest.model_validate(plain).write(directory)


def test_stored_maps_are_those_of_the_teacher_beside_the_student(recipe, fields):
    build(parse(recipe(**fields)))
    manifest = load_manifest(Path(fields["cache"]["dir"]))
    assert manifest.plan.identity["teacher"]["channels_first"] == ["layers.0"]
    assert [column.shape for column in manifest.plan.parts["train"].columns] == [(24, 4, 4)]
    cached = reading(recipe, fields)
    assert first_loss(cached) == pytest.approx(first_loss(parse(recipe(**fields))), rel=1e-5)
    assert all(agreement.wrong == 0 for agreement in verify(cached, 8, CPU))


def test_a_cache_from_before_is_refused(recipe, fields):
    build(parse(recipe(**fields)))
    as_of_before(Path(fields["cache"]["dir"]))
    cached = reading(recipe, fields)
    for read in (first_loss, lambda config: verify(config, 8, CPU)):
        with pytest.raises(Refused, match=r"'layers.0' as swin_tiny.* \[4, 4, 24\].*build the cache again"):
            read(cached)
    Path(fields["teacher"]["checkpoint"]).unlink()  # where the teacher's weights are not, too
    with pytest.raises(Refused, match=r"'layers.0' as swin_tiny"):
        first_loss(reading(recipe, fields | {"teacher": fields["teacher"] | {"checkpoint": None}}))


def test_a_cache_from_before_is_refused_whose_teacher_keeps_some_classes(recipe, fields, tmp_path):
    """Its network was asked for two numbers of classes, and TypeError was all that was said."""
    (tmp_path / "classes.json").write_text('{"class0": 2, "class1": 0, "class2": 1}')
    args = fields["teacher"]["args"] | {"num_classes": 3}
    fields["teacher"] |= {"class_indices": str(tmp_path / "classes.json"), "args": args}
    build(parse(recipe(**fields)))
    as_of_before(Path(fields["cache"]["dir"]))
    with pytest.raises(Refused, match=r"'layers.0' as swin_tiny"):
        first_loss(reading(recipe, fields))


def test_maps_with_as_many_channels_as_places_are_told_apart(recipe, fields):
    """[4,4,4] says nothing of itself: the teacher's network does."""
    fields["teacher"] |= {"args": SWIN | {"embed_dim": 4}, "checkpoint": None, "random": True}
    build(parse(recipe(**fields)))
    first_loss(reading(recipe, fields))
    as_of_before(Path(fields["cache"]["dir"]))
    with pytest.raises(Refused, match=r"'layers.0' as swin_tiny.* \[4, 4, 4\]"):
        first_loss(reading(recipe, fields))


def test_maps_of_other_teachers_stay_what_they_were(recipe, fields):
    """As many channels as places, and read as ever; its identity has nothing new."""
    fields["teacher"] = {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}, "random": True}
    fields["method"] = [{"term": "at", "weight": 1.0, "pairs": [{"student": "layer2", "teacher": "layer2"}]}]
    build(parse(recipe(**fields)))
    manifest = load_manifest(Path(fields["cache"]["dir"]))
    assert [column.shape for column in manifest.plan.parts["train"].columns] == [(8, 8, 8)]
    assert "channels_first" not in manifest.plan.identity["teacher"]
    first_loss(reading(recipe, fields))

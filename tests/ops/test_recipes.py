"""Every method of the recipes that come with the project runs its tiny form, with teachers of random weights.

In this process, without Ray: what a worker assembles, and two steps of it on a few small pictures.
"""

from __future__ import annotations

import pytest
import torch

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from kdcore.models import build_model
from kdcore.optim import build_optimizer
from kdcore.taps import FeatureTaps
from ops import catalog
from ops.cifar100 import rows
from ops.cifar100.tables import PAIRS
from tests.ops.named import CIFAR_ROWS, NAMES, OWN, loaded


@pytest.fixture
def tiny(image_folder, tmp_path):
    """A function: a recipe's tiny form, on a few pictures of 3 classes and without anybody's weights."""

    def make(name: str, *overrides: str) -> RunConfig:
        recipe = catalog.read(name)
        sections = [section for section in ("student", "teacher") if recipe.get(section)]
        weights = [f"{section}.{key}" for section in sections for key in ("pretrained=false", "checkpoint=null")]
        weights += ["teacher.random=true"] if "teacher" in sections else []
        crd, wkd_f = (
            [i for i, term in enumerate(recipe["method"]) if term["term"] == kind] for kind in ("crd", "wkd_f")
        )
        return catalog.load(
            name,
            [
                *weights,
                *(f"method.{i}.num_negatives=32" for i in crd),
                *(f"method.{i}.grid=1" for i in wkd_f),
                f"data.root={image_folder}",
                f"output_dir={tmp_path}",
                *("data.loader=reference", "data.num_threads=1", "data.held_out=0.2"),
                *("train.batch_size=4", "train.micro_batch=4", "scaling.num_workers=1"),
                *overrides,
            ],
        )

    return make


def two_steps(config: RunConfig) -> None:
    """Every term is finite, every weight that is trained receives a gradient, and the loss of one batch changes."""
    parts = assemble(config, Rank(0, 1, torch.device("cpu")))
    distiller = parts.distiller()
    optimizer = build_optimizer(config.optimizer, distiller)
    (batch,) = parts.train_loader().load([next(parts.train_requests(0))])
    losses = []
    for _ in range(2):
        distiller.train()
        output = distiller(batch)
        assert output.terms.keys() == distiller.terms.keys()
        assert all(bool(value.isfinite()) for value in output.terms.values())
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        assert [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None] == []
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[0] != losses[1]


def first_row_of(method: str) -> str:
    """The method's row of its smallest networks."""
    pairs = ("resnet56-resnet20", "resnet32x4-resnet8x4")
    return next(name for pair in pairs if (name := f"cifar100/{pair}/{method}") in NAMES)


@pytest.mark.parametrize("method", rows.METHODS)
def test_every_cifar_method_runs(method, tiny):
    two_steps(tiny(first_row_of(method)))


def test_a_network_alone_runs(tiny):
    two_steps(tiny("cifar100/resnet20/alone"))


@pytest.mark.parametrize("pair", PAIRS)
def test_every_cifar_pair_is_forwarded(pair, tiny):
    """With every tap that any of its rows reads; stages shrink towards the last, which gives the last map."""
    mine = [name for name in CIFAR_ROWS if name.startswith(f"cifar100/{pair}/")]
    assert len(mine) >= 14
    config = tiny(f"cifar100/{pair}/kd")
    assert config.teacher is not None
    student, teacher = (build_model(model, ("a", "b", "c")) for model in (config.student, config.teacher))
    needs = [loaded(name).needs for name in mine]
    student_taps = frozenset().union(*(n.student_taps for n in needs))
    teacher_taps = frozenset().union(*(n.teacher_taps for n in needs))
    students = FeatureTaps(student, student_taps).shapes((32, 32))
    teachers = FeatureTaps(teacher, teacher_taps).shapes((32, 32))
    stages = catalog.load(f"cifar100/{pair}/at").method[1].pairs  # type: ignore[attr-defined]
    for sides in ([students[p.student][1:] for p in stages], [teachers[p.teacher][1:] for p in stages]):
        assert sides == sorted(sides, reverse=True)
    last_stages = students[stages[-1].student], teachers[stages[-1].teacher]
    assert last_stages == (students["forward_features"], teachers["forward_features"])


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("feature_only/")])
def test_every_row_of_the_feature_only_paper_runs(name, tiny):
    """ViT-B in all its depth, but narrower."""
    narrow = [f"{section}.args.{key}" for section in ("student", "teacher") for key in ("embed_dim=96", "num_heads=4")]
    big = {"feature_only/vit_b": narrow[:2], "feature_only/vit_b-vit_ett": narrow[2:]}
    two_steps(tiny(name, *big.get(name.removesuffix("-standard"), [])))


def tiny_imagenet(name: str) -> list[str]:
    deit = ["student.args={img_size: 64}", "teacher.args={img_size: 64}"] if "deit" in name else []
    return ["views.size=64", *deit]


IMAGENET = [name for name in NAMES if name.startswith("imagenet/")]
# One row for each of the methods, and one for each of the students.
FAST = [name for name in IMAGENET if "resnet34-resnet18" in name or "deit" in name or "simkd" in name]


FAST.append("imagenet/resnet50-mobilenetv1-wttm")


@pytest.mark.parametrize("name", FAST)
def test_every_imagenet_method_runs(name, tiny):
    two_steps(tiny(name, *tiny_imagenet(name)))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(set(IMAGENET) - set(FAST)))
def test_every_other_imagenet_row_runs(name, tiny):
    two_steps(tiny(name, *tiny_imagenet(name)))


@pytest.mark.parametrize("name", OWN)
def test_every_recipe_for_own_images_runs(name, tiny):
    two_steps(tiny(name, "views.size=64", "student.model=resnet10t", *small_teacher(name)))


def small_teacher(name: str) -> list[str]:
    return [] if catalog.read(name).get("teacher") is None else ["teacher.model=resnet14t"]

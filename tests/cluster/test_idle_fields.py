"""A field that nothing reads, as another one stands, is refused; at its default it is harmless."""

from __future__ import annotations

import pytest

from cluster.recipe import parse, validated
from cluster.sweep.config import SweepConfig
from kdcore.errors import Refused
from ops import catalog

KD = [{"term": "kd", "weight": 1.0, "temperature": 4.0}]


@pytest.mark.parametrize(
    ("place", "idle", "default", "read_with"),
    [
        ("train.ema_warmup", True, False, {"train__ema_decay": 0.9}),
        ("train.max_skipped", 0.5, 0.01, {"train__on_nonfinite": "skip"}),
        ("scaling.resize_seconds", 1.0, 60, {"scaling__min_workers": 1, "train__micro_batch": 4}),
        ("student.factor", 4, 2, {"student__classifier": "reused", "method": [{"term": "simkd", "weight": 1.0}]}),
        ("data.decode", "gpu", "auto", {"data__loader": "dali"}),
        ("data.crop_pct", 0.9, 0.875, {"views__crop": "resized"}),
        ("views.erase_fill", "noise", "mean", {"views__erase_probability": 0.5}),
        ("views.erase_scale", [0.1, 0.2], [0.02, 1 / 3], {"views__erase_probability": 0.5}),
        ("views.mix_probability", 0.5, 1.0, {"views__mixup_alpha": 0.2}),
        ("views.switch_probability", 0.2, 0.5, {"views__mixup_alpha": 0.2, "views__cutmix_alpha": 1.0}),
        ("schedule.warmup_lr", 0.1, 1e-5, {"schedule__warmup_epochs": 1}),
        ("schedule.warmup_prefix", True, False, {"schedule__warmup_epochs": 1}),
        ("cache.sparse_bytes", 32, 64, {"cache__logits": "sparse"}),
        ("cache.sparse_top", 4, 8, {"cache__logits": "sparse"}),
    ],
)
def test_what_nothing_reads_is_refused(recipe, place, idle, default, read_with):
    fields = {
        "teacher": {"model": "cifar_resnet8", "random": True},
        "cache": {"dir": "cache"},
        "method": KD,
        "data__loader": "reference",
        "views__crop": "padded",
        "views__scale": (0.08, 1.0),
    }
    if place.startswith(("scaling", "views.mix", "views.switch")):
        fields["train__batch_size"] = 8
    key = place.replace(".", "__")
    with pytest.raises(
        Refused, match=rf"{place.partition('.')[0]}.*{place.partition('.')[2]}=.* has no effect without"
    ):
        parse(recipe(**fields | {key: idle}))
    parse(recipe(**fields | {key: default}))
    parse(recipe(**fields | {key: idle} | read_with))


def test_how_several_teachers_are_averaged_needs_several(recipe):
    with pytest.raises(Refused, match=r"ensemble.average=probabilities has no effect without several teachers"):
        parse(recipe(ensemble={"average": "probabilities"}))


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("seed", {"seed": 3}, {"seed": 3, "search": "random", "num_points": 2}),
        ("max_caches", {"max_caches": 2, "teacher": "online"}, {"max_caches": 2}),
    ],
)
def test_of_a_sweep(field, wrong, right):
    space = {"name": "s", "space": {"temperature": [1, 2]}}
    with pytest.raises(Refused, match=f"{field}=.* has no effect without"):
        validated(SweepConfig, space | wrong, "space")
    validated(SweepConfig, space | right, "space")


def test_sizes_of_choices_that_are_given():
    pairs = {"pairs": [[{"student": "a", "teacher": "b"}]], "sizes": [2]}
    with pytest.raises(Refused, match=r"sizes=.* has no effect without ranked"):
        validated(SweepConfig, {"name": "s", "space": {"layers": pairs}}, "space")


def test_no_shipped_recipe_has_one():
    for name in catalog.names():
        catalog.load(name)


def test_a_recipe_for_one_of_several_teachers_has_none(recipe):
    """What is made of a recipe with SimKD's student is read again by the workers that build a cache."""
    method = [{"term": "simkd", "weight": 1.0, "teacher": "one"}, {**KD[0], "teacher": "two"}]
    teachers = [{"name": name, "model": "cifar_resnet8", "random": True} for name in ("one", "two")]
    student = {"model": "cifar_resnet8", "classifier": "reused", "factor": 4}
    config = parse(recipe(teachers=teachers, method=method, cache={"dir": "cache"}, student=student))
    for one in config.teacher_recipes:
        parse(one.model_dump(mode="json"))

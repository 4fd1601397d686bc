"""A field that nothing reads as another stands is refused, but for the details of what one field turns off."""

from __future__ import annotations

import pytest

from cluster.recipe.reading import parse, validated
from cluster.sweep.config import SweepConfig
from kdcore.errors import Refused
from ops import catalog


@pytest.mark.parametrize(
    ("place", "idle", "default", "read_with"),
    [
        ("scaling.resize_seconds", 1.0, 60, {"scaling__min_workers": 1, "train__micro_batch": 4}),
        ("data.decode", "gpu", "auto", {"data__loader": "dali"}),
    ],
)
def test_what_nothing_reads_is_refused(recipe, place, idle, default, read_with):
    fields = {"data__loader": "reference"}
    key = place.replace(".", "__")
    with pytest.raises(
        Refused, match=rf"{place.partition('.')[0]}.*{place.partition('.')[2]}=.* has no effect without"
    ):
        parse(recipe(**fields | {key: idle}))
    parse(recipe(**fields | {key: default}))
    parse(recipe(**fields | {key: idle} | read_with))


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


def test_what_one_override_turns_off_needs_no_second():
    """A recipe's warm-up, erasing, mixing, average and skipping are left out by their own field, in a sweep, too."""
    recipe = "imagenet/deit3_small-deit_tiny-wttm"
    off = ["schedule.warmup_epochs=0", "views.erase_probability=0", "views.mixup_alpha=0", "views.cutmix_alpha=0"]
    off += ["train.ema_warmup=true", "train.ema_decay=null", "train.max_skipped=0.5", "train.on_nonfinite=stop"]
    config = catalog.load(recipe, off)
    assert config.schedule.warmup_lr == 1e-6
    assert config.views.erase_fill == "noise"
    assert (config.train.ema_warmup, config.train.max_skipped) == (True, 0.5)


def test_no_shipped_recipe_has_one():
    for name in catalog.names():
        catalog.load(name)

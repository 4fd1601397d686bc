"""Every recipe that comes with the project is there, is valid, and says what it is; any is found by its name."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch

from cluster.recipe.reading import load_recipe
from kdcore.errors import Refused
from kdcore.optim import Schedule, build_optimizer
from kdcore.taps import FeatureTaps
from kdcore.terms import REGISTRY
from ops import catalog
from ops.cifar100 import rows
from ops.cifar100.tables import NETWORKS, PAIRS, SETTINGS, TOP1, UNEQUAL_STAGES
from tests.ops.named import CIFAR_ROWS, NAMES, OWN, loaded, text

# 15 networks alone; 11 methods for all 13 pairs, and five more with settings for each; the others where published:
# 11 dkd, 4 times 10 rld, lskd, dkd-lskd and mlkd-lskd, 8 reviewkd, 4 kd-nd, 4 dkd-nd, 2 wkd-l, 1 wkd-f, 1 wkd.
WHERE_PUBLISHED = 11 + 4 * 10 + 8 + 4 + 4 + 2 + 1 + 1
CIFAR100 = 15 + 16 * 13 + WHERE_PUBLISHED
FAMILIES = {
    "own": len(OWN),
    "demo": 3,
    "folder": 3,
    "foundation": 4,
    "imagenet": 24,
    "feature_only": 11,
    "paper3": 10,
    "cifar100": CIFAR100,
}
PAPERS = [name for name in NAMES if not name.startswith(("demo/", "folder/", "foundation/"))]


def family(name: str) -> str:
    return name.partition("/")[0] if "/" in name else "own"


def test_no_recipe_is_missing_and_none_is_left_out():
    assert Counter(map(family, NAMES)) == FAMILIES
    assert len(set(NAMES)) == len(NAMES)
    assert [name for name in NAMES if "/" not in name] == OWN
    files = {path.relative_to(catalog.RECIPES).as_posix() for path in catalog.RECIPES.rglob("*.yaml")}
    assert {f"{name}.yaml" for name in NAMES} - files == {f"{name}.yaml" for name in CIFAR_ROWS}
    assert all(name.endswith("common.yaml") for name in files - {f"{name}.yaml" for name in NAMES})


@pytest.mark.parametrize("name", NAMES)
def test_built(name):
    """It is valid, and its networks exist."""
    config = loaded(name)
    for model in (config.student, config.teacher):
        assert model is None or timm.is_model(model.model.partition(".")[0])


def all_but_repetitions() -> list[str]:
    """Every recipe, but of the CIFAR-100 rows one for each network, pair and method."""
    words = {word: name for name in CIFAR_ROWS for word in name.split("/")[1:]}
    return [name for name in NAMES if name not in CIFAR_ROWS or name in words.values()]


@pytest.mark.parametrize("name", all_but_repetitions())
def test_what_is_printed_is_the_same_recipe_in_one_file(name, tmp_path):
    path = tmp_path / "copied.yaml"
    path.write_text(text(name))
    assert load_recipe(path) == loaded(name)


def test_runs_of_a_family_do_not_share_a_folder():
    folders = Counter(loaded(name).run_dir for name in PAPERS)
    assert max(folders.values()) == 1


@pytest.mark.parametrize("name", PAPERS)
def test_it_says_what_it_is_about(name):
    about = catalog.about(name)
    assert about == loaded(name).about
    assert about.title
    assert about.paper
    assert about.data
    assert about.hardware
    assert about.source or about.expected.top1 is None, "a number has a source"
    assert max(map(len, text(name).splitlines())) <= 120


def test_every_term_that_a_table_names_has_a_recipe():
    """The losses without a row: no table of CIFAR-100 or ImageNet has them with all their hyper-parameters."""
    used = {term.term for name in NAMES for term in loaded(name).method}
    assert set(REGISTRY) - used == {"bce", "binary_kd", "diffkd", "diffkd_logits", "kdiga", "spectral"}


PUBLISHED = {
    # row: the terms' own fields, the rate, and the number, each as published
    "cifar100/resnet32x4-resnet8x4/wttm": ("wttm", {"gamma": 0.1, "weight": 3}, 0.05, "76.06 ± 0.27 top-1"),
    "cifar100/resnet32x4-shufflenetv2/wttm": ("wttm", {"gamma": 0.4, "weight": 16}, 0.01, "76.55 top-1"),
    "cifar100/wrn_40_2-wrn_16_2/ttm": ("ttm", {"gamma": 0.1, "weight": 101}, 0.05, "76.23 ± 0.15 top-1"),
    "cifar100/wrn_40_2-shufflenetv1/wttm-crd": ("wttm", {"gamma": 0.2, "weight": 0.16}, 0.01, "76.86 top-1"),
    "cifar100/vgg13-vgg8/wttm": ("wttm", {"gamma": 0.1, "weight": 2.25}, 0.05, "74.44 ± 0.19 top-1"),
    "cifar100/resnet50-mobilenetv2_half/ttm": ("ttm", {"gamma": 0.2, "weight": 20}, 0.01, "69.24 top-1"),
    "cifar100/resnet56-resnet20/dkd": ("dkd", {"non_target_weight": 2, "temperature": 4}, 0.05, "71.97 top-1"),
    "cifar100/resnet32x4-resnet8x4/simkd": ("simkd", {"weight": 1}, 0.05, "78.08 ± 0.15 top-1"),
    "cifar100/resnet32x4-resnet8x4/kd-nd": ("nd", {"weight": 2}, 0.1, "75.54 top-1"),
    "cifar100/resnet110-resnet20/lskd": ("lskd", {"temperature": 4, "weight": 12}, 0.05, "71.48 top-1"),
    "cifar100/resnet32x4-resnet8x4/wttm-itrd": ("itrd", {"alpha": 1.01, "mutual_weight": 1}, 0.05, "77.36 top-1"),
    "cifar100/resnet50-vgg8/wttm-itrd": ("itrd", {"alpha": 1.5, "mutual_weight": 0}, 0.05, "76.00 top-1"),
    "cifar100/resnet32x4-resnet8x4/wkd": ("wkd_l", {"weight": 200, "temperature": 8}, 0.05, "77.28 top-1"),
    "cifar100/resnet32x4-resnet8x4/mlkd-lskd": ("mlkd", {"weight": 9}, 0.025, "no published number"),
    "cifar100/resnet110-resnet32/crd": ("crd", {"weight": 0.8, "num_negatives": 16384}, 0.05, "73.48 top-1"),
    "imagenet/resnet34-resnet18-wttm": ("wttm", {"gamma": 0.8, "weight": 1.6}, 0.1, "72.19 top-1"),
    "imagenet/resnet50-mobilenetv1-wttm": ("wttm", {"gamma": 0.7, "weight": 3.5}, 0.1, "73.09 top-1"),
    "imagenet/resnet34-resnet18-wkd-l": ("wkd_l", {"weight": 30, "sharpness": 1}, 0.1, "72.49 top-1"),
    "imagenet/resnet50-mobilenetv1-wkd": ("wkd_f", {"weight": 0.005, "grid": 4}, 0.1, "73.69 top-1"),
    "imagenet/resnet50-resnet18-simkd": ("simkd", {"weight": 1}, 0.1, "71.66 top-1"),
    "imagenet/deit3_small-deit_tiny-wttm": ("wttm", {}, 0.001, "77.03 top-1"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_carry_the_published_values(name):
    kind, fields, lr, expected = PUBLISHED[name]
    config = loaded(name)
    (term,) = (term for term in config.method if term.term == kind)
    assert {field: getattr(term, field) for field in fields} == fields
    assert config.optimizer.lr == lr
    assert str(catalog.about(name).expected).startswith(expected)


def test_tables_are_complete():
    """No cell is in a wrong column: a row has a number for each pair, or a dash; settings are numbers."""
    assert set(SETTINGS) | {key.removesuffix("±") for key in TOP1} <= set(rows.METHODS)
    assert {network for pair in PAIRS for network in pair.split("-")} == set(NETWORKS)
    assert all(50 < float(top1) < 80 for method in TOP1 if "±" not in method for top1 in TOP1[method].values())
    assert [len(SETTINGS[method]) for method in ("ttm", "dkd", "lskd", "reviewkd", "kd-nd")] == [13, 11, 10, 8, 4]


@pytest.mark.parametrize("pair", PAIRS)
def test_second_stages_of_unequal_size_are_named(pair):
    config = loaded(f"cifar100/{pair}/fitnet")
    ((student_tap, teacher_tap),) = [(p.student, p.teacher) for p in config.method[1].pairs]  # type: ignore[attr-defined]
    sizes = [
        FeatureTaps(timm.create_model(model.model), frozenset({tap})).shapes((32, 32))[tap][1:]
        for model, tap in ((config.student, student_tap), (config.teacher, teacher_tap))
    ]
    assert (sizes[0] != sizes[1]) == (pair in UNEQUAL_STAGES)


def test_the_cifar_schedule_and_optimiser_are_those_of_the_tables():
    """The rate of epochs counted from 0: 0.05 to the 150th, then a tenth at 150, 180, 210; no Nesterov momentum."""
    config = catalog.load("cifar100/resnet32x4-resnet8x4/kd")
    optimizer = build_optimizer(config.optimizer, torch.nn.Linear(2, 2))
    schedule = Schedule(config.schedule, optimizer, config.train.epochs, steps_per_epoch=781)
    rates = []
    for epoch in (0, 149, 150, 179, 180, 209, 210, 239):
        schedule.set_step(epoch * 781)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])
    (group,) = optimizer.param_groups
    assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (False, 0.9, 5e-4)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(Refused, match=r"cifar100/resnet56-resnet20/wtm: no such recipe; did you mean .*/wttm"):
        catalog.load("cifar100/resnet56-resnet20/wtm")


def test_a_file_is_a_recipe_too(recipe, tmp_path):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(recipe()))
    assert catalog.load(path, ["train.epochs=9"]).train.epochs == 9


def test_overrides_do_not_reach_the_next_reader():
    name = "cifar100/resnet56-resnet20/at"
    assert catalog.load(name, ["method.1.pairs.0.student=layer3"]) != catalog.load(name)
    assert catalog.load(name).method[1].pairs[0].student == "layer1"  # type: ignore[attr-defined]


def listed(capsys: Any, wanted: str | None) -> list[str]:
    assert catalog.recipes(wanted) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_lists_and_prints(capsys):
    assert [line.split()[0] for line in listed(capsys, None)] == NAMES
    (line,) = listed(capsys, "resnet34-resnet18-dk")
    assert line.split(maxsplit=1)[1] == "71.70 top-1 (teacher 73.31, student alone 69.76)"
    printed = listed(capsys, "imagenet/resnet34-resnet18-dkd")
    assert printed[0] == "# python -m ops train imagenet/resnet34-resnet18-dkd"
    assert "  title: ResNet-34 teaches ResNet-18 on ImageNet by DKD." in printed
    assert "  batch_size: 256" in printed
    with pytest.raises(Refused, match="no such recipe"):
        catalog.recipes("resnet-35")

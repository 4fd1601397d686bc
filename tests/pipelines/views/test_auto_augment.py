"""Policies beside the originals as installed: every argument at every level, and what 100,000 draws give."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from timm.data import auto_augment as timm_policies
from torchvision.transforms import v2

from kdcore.errors import Refused
from pipelines.views.auto_augment import WORDS, AutoAugment, auto_augment, standard_normal
from pipelines.views.operations import (
    FACTORS,
    TIMM,
    TIMM_INCREASING,
    TORCHVISION,
    TORCHVISION_AUTO,
    TORCHVISION_WIDE,
    Kind,
    Operation,
)
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

SIDES = (224, 192)
TIMM_NAMES = {
    Kind.TRANSLATE_X: "TranslateXRel",
    Kind.TRANSLATE_Y: "TranslateYRel",
}


def camel(kind: Kind) -> str:
    return kind.name.title().replace("_", "")


def argument(operation: Operation, level: float, negated: bool) -> float:
    return float(operation.argument(np.array([level]), np.array([negated]), *SIDES)[0])


def of_timm(operation: Operation, increasing: bool, level: float, negated: bool, monkeypatch: Any) -> float:
    """timm's argument; of a relative translation in pixels, of a factor held to at least .1."""
    name = TIMM_NAMES.get(operation.kind, camel(operation.kind))
    name += "Increasing" if increasing and f"{name}Increasing" in timm_policies.LEVEL_TO_ARG else ""
    function = timm_policies.LEVEL_TO_ARG[name]
    if function is None:
        return 0.0
    monkeypatch.setattr(random, "random", lambda: 0.9 if negated else 0.1)
    (value,) = function(level * 10, {})
    side = {Kind.TRANSLATE_X: SIDES[1], Kind.TRANSLATE_Y: SIDES[0]}.get(operation.kind, 1)
    return float(value * side)


@pytest.mark.parametrize("increasing", [True, False])
def test_arguments_are_timms(increasing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = TIMM_INCREASING if increasing else TIMM
    names = timm_policies._RAND_INCREASING_TRANSFORMS if increasing else timm_policies._RAND_TRANSFORMS
    assert [TIMM_NAMES.get(o.kind, camel(o.kind)) for o in operations] == [n.removesuffix("Increasing") for n in names]
    for operation in operations:
        for level in (0, 0.1, 0.31, 0.5, 0.777, 0.9, 0.95, 1):
            for negated in (False, True):
                theirs = of_timm(operation, increasing, level, negated, monkeypatch)
                assert argument(operation, level, negated) == pytest.approx(theirs, abs=1e-12), (operation, level)


SPACES: list[tuple[tuple[Operation, ...], Any, int]] = [
    (TORCHVISION, v2.RandAugment, 31),
    (TORCHVISION_AUTO, v2.AutoAugment, 10),
    (TORCHVISION_WIDE, v2.TrivialAugmentWide, 31),
]


@pytest.mark.parametrize(("operations", "original", "bins"), SPACES)
def test_arguments_are_torchvisions(operations: tuple[Operation, ...], original: Any, bins: int) -> None:
    space = original._AUGMENTATION_SPACE
    assert [camel(operation.kind) for operation in operations] == list(space)
    for operation in operations:
        levels, signed = space[camel(operation.kind)]
        magnitudes = levels(bins, *SIDES)
        assert signed == operation.signed
        for number in range(bins):
            for negated in (False, True):
                magnitude = 0.0 if magnitudes is None else float(magnitudes[number])
                theirs = -magnitude if negated and signed else magnitude
                if operation.kind in FACTORS:
                    theirs += 1
                elif operation.kind == Kind.SOLARIZE:
                    theirs *= 255
                elif operation.kind in (Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.POSTERIZE):
                    theirs = int(theirs)
                ours = argument(operation, number / (bins - 1), negated)
                if abs(theirs) == 15 and abs(ours) == 16 and number == 15:
                    continue  # torchvision's levels are of float32: 32 * 15 / 30 is 15.999999, and 15 is left
                assert ours == pytest.approx(theirs, abs=1e-4), (operation, number)


def ours(policy: AutoAugment, num: int) -> tuple[np.ndarray, np.ndarray]:
    uniform = np.random.default_rng(1).random((num, WORDS * policy.num_operations))
    return policy.draw(uniform, 224, 224)


Drawn = dict[str, list[float]]  # {operation: its arguments, one for each time that it was applied}


def drawn_by_us(name: str, num: int) -> Drawn:
    kinds, arguments = ours(auto_augment(name), num)
    return {camel(kind): arguments[kinds == kind].tolist() for kind in Kind if kind != Kind.IDENTITY}


def drawn_by_timm(config: str, num: int) -> Drawn:
    """What timm's policy does to num pictures, its functions on pixels replaced by a note of their arguments."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002, it is what timm draws from
    settings = {"translate_const": 100, "img_mean": (124, 116, 104)}
    if config.startswith("rand"):
        policy = timm_policies.rand_augment_transform(config, settings)
        operations = policy.ops
    else:
        policy = timm_policies.auto_augment_transform(config, settings)
        operations = [operation for sub_policy in policy.policy for operation in sub_policy]
    found: Drawn = defaultdict(list)
    for operation in operations:
        name = operation.name.removesuffix("Increasing").removesuffix("Original").removesuffix("Rel")
        scale = 224 if name.startswith("Translate") else 1

        def note(image: None, *given: float, name: str = name, scale: int = scale, **_: Any) -> None:
            found[name].append(given[0] * scale if given else 0.0)

        operation.aug_fn = note
    for _ in range(num):
        policy(None)
    return found


def drawn_by_torchvision(policy: Any, num: int) -> Drawn:
    torch.manual_seed(0)
    found: Drawn = defaultdict(list)

    def note(image: torch.Tensor, name: str, magnitude: float, **_: Any) -> torch.Tensor:
        if name != "Identity":
            scale = 255 if name == "Solarize" else 1
            shift = 1 if name in {camel(kind) for kind in FACTORS} else 0
            whole = name.startswith("Translate") or name == "Posterize"
            found[name].append(int(magnitude) if whole else magnitude * scale + shift)
        return image

    policy._apply_image_or_video_transform = note
    image = torch.zeros(3, 224, 224, dtype=torch.uint8)
    for _ in range(num):
        policy(image)
    return found


ORIGINALS: dict[str, Callable[[int], Drawn]] = {
    "rand-m9-mstd0.5-inc1": lambda num: drawn_by_timm("rand-m9-mstd0.5-inc1", num),
    "rand-m7-n3-p0.4-mstd101": lambda num: drawn_by_timm("rand-m7-n3-p0.4-mstd101", num),
    "v0": lambda num: drawn_by_timm("v0", num),
    "v0r-mstd0.5": lambda num: drawn_by_timm("v0r-mstd0.5", num),
    "original-mstd0.5": lambda num: drawn_by_timm("original-mstd0.5", num),
    "originalr": lambda num: drawn_by_timm("originalr", num),
    "ra-2-9": lambda num: drawn_by_torchvision(v2.RandAugment(2, 9), num),
    "aa-imagenet": lambda num: drawn_by_torchvision(v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET), num),
    "aa-cifar": lambda num: drawn_by_torchvision(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), num),
    "aa-svhn": lambda num: drawn_by_torchvision(v2.AutoAugment(v2.AutoAugmentPolicy.SVHN), num),
    "trivial": lambda num: drawn_by_torchvision(v2.TrivialAugmentWide(), num),
}


KS_BOUND = 2.23  # of sqrt(n m / (n + m)) times the distance: exceeded once in 10,000 tests


def distance(a: Any, b: Any) -> float:
    """Kolmogorov-Smirnov: the largest difference of the shares at or below a value, times sqrt(n m / (n + m))."""
    a, b = np.sort(np.round(a, 4)), np.sort(np.round(b, 4))
    at = np.concatenate((a, b))
    apart = np.searchsorted(a, at, side="right") / len(a) - np.searchsorted(b, at, side="right") / len(b)
    return float(np.abs(apart).max() * np.sqrt(len(a) * len(b) / (len(a) + len(b))))


def same_distribution(name: str, num: int, num_theirs: int) -> None:
    """Checks that operations are applied as often (within 4 deviations) and with arguments of one distribution."""
    mine, theirs = drawn_by_us(name, num), ORIGINALS[name](num_theirs)
    used = [kind for kind, values in mine.items() if values]
    assert set(used) == set(theirs)
    shares = np.array([[len(mine[kind]) / num, len(theirs[kind]) / num_theirs] for kind in used])
    deviation = np.sqrt(shares.mean(axis=1) * (1 / num + 1 / num_theirs))
    assert np.all(np.abs(shares[:, 0] - shares[:, 1]) < 4 * deviation), dict(zip(used, shares.tolist(), strict=True))
    for kind in used:
        assert distance(mine[kind], theirs[kind]) < KS_BOUND, kind


@pytest.mark.parametrize("name", ORIGINALS)
def test_draws_are_distributed_as_the_originals(name: str) -> None:
    same_distribution(name, 100_000, 4_000)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ORIGINALS)
def test_100_000_draws_of_both_are_distributed_alike(name: str) -> None:
    same_distribution(name, 100_000, 100_000)


def test_three_augment_is_one_of_three_with_certainty() -> None:
    """As `augment.py` of the DeiT repository: grey, solarize at 128, or a blur with a radius uniform in [.1, 2]."""
    kinds, arguments = ours(auto_augment("three"), 30_000)
    values, counts = np.unique(kinds, return_counts=True)
    assert values.tolist() == [Kind.COLOR, Kind.SOLARIZE, Kind.BLUR]
    assert np.all(np.abs(counts / 30_000 - 1 / 3) < 0.011)
    assert set(arguments[kinds == Kind.COLOR]) == {0.0}
    assert set(arguments[kinds == Kind.SOLARIZE]) == {128.0}
    assert distance(arguments[kinds == Kind.BLUR], np.linspace(0.1, 2, 100_001)) < KS_BOUND


def test_sub_policies_are_drawn_together() -> None:
    """Each of AutoAugment's pairs holds for both turns: what stands in no row never follows."""
    policy = auto_augment("aa-cifar")
    allowed = {tuple(choice.operation.kind for choice in row) for row in policy.choices}
    kinds, _ = ours(policy, 20_000)
    both = kinds[(kinds > 0).all(axis=1)]
    assert {tuple(row) for row in both.tolist()} <= allowed
    assert len(policy.choices) == 25


def test_standard_normal() -> None:
    draws = standard_normal(np.random.default_rng(0).random((200_000, 2)))
    quantiles = torch.special.ndtri(torch.linspace(0, 1, 1_000_001, dtype=torch.float64)[1:-1]).numpy()
    assert distance(draws, quantiles) < KS_BOUND
    assert np.isfinite(standard_normal(np.array([[0.0, 0.0], [1 - 2.0**-32, 1 - 2.0**-32]]))).all()


def names() -> Iterator[tuple[str, str]]:
    yield "randaugment", "there is no augmentation policy 'randaugment'; take rand-m9-mstd0.5-inc1 or ra-2-9"
    yield "trivail", "take trivial"
    yield "aa-cifar10", "take aa-cifar"
    yield "rand", "there is no"
    yield "rand-m9-mstd0.5-inc1-w0", "'w0' is not a setting"
    yield "rand-m11", "out of range"
    yield "rand-m9-tweights", "'tweights' is not a setting"
    yield "v0-m9", "'m9' is not a setting of 'v0-m9'; give mstd"
    yield "orignal", "take original"
    yield "3a", "there is no augmentation policy '3a'"
    yield "ra-2-31", "out of range"
    yield "ra-0-9", "out of range"


@pytest.mark.parametrize(("name", "message"), names())
def test_a_name_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewPolicy(auto_augment=name)
    with pytest.raises(Refused, match=message):
        auto_augment(name)


def test_a_fill_without_a_policy_is_refused() -> None:
    with pytest.raises(ValidationError, match="no effect without auto_augment"):
        ViewPolicy(auto_augment_fill=(0, 0, 0))


def test_a_policy_changes_no_other_draw_and_no_fingerprint_where_it_is_off() -> None:
    ids, sides = np.arange(40), np.full(40, 300)
    plain = ViewPlan(ViewPolicy(erase_probability=0.5, mixup_alpha=1, brightness=0.4), 3, 40)
    policy = plain.policy.model_copy(update={"auto_augment": "rand-m9-mstd0.5-inc1"})
    augmented = ViewPlan(policy, 3, 40)
    before, after = plain.views(5, ids, sides, sides), augmented.views(5, ids, sides, sides)
    for name, column in vars(before).items():
        if name not in ("operations", "arguments"):
            np.testing.assert_array_equal(column, getattr(after, name))
    assert before.operations is None
    assert after.operations is not None
    assert plain.fingerprint != augmented.fingerprint
    assert plain.policy.appearance().keys() == policy.appearance().keys() - {"auto_augment"}


def test_draws_are_pinned() -> None:
    views = ViewPlan(ViewPolicy(auto_augment="rand-m9-mstd0.5-inc1"), 7, 100).views(
        3, np.arange(40, 44), np.full(4, 300), np.full(4, 300)
    )
    assert views.operations is not None
    assert views.arguments is not None
    assert views.operations.tolist() == PINNED_KINDS
    assert views.arguments.tolist() == PINNED_ARGUMENTS


PINNED_KINDS = [[12, 5], [5, 11], [10, 12], [13, 0]]
PINNED_ARGUMENTS = [[98.0, -27.274849588167697], [24.567812041265316, 5.0], [1.0, 109.0], [0.0, 0.0]]

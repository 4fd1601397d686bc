"""Views as pure functions: pinned, independent of company, and named by a fingerprint."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from kdcore.errors import Refused
from pipelines.views.plan import ViewPlan, Views
from pipelines.views.policy import ViewPolicy

FULL = ViewPolicy(
    size=64,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase_probability=0.5,
    erase_fill="noise",
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
)


def views(plan: ViewPlan, view: int, ids: np.ndarray) -> Views:
    return plan.views(view, ids, 300 + ids % 91, 280 + ids % 77)


def arrays(of: Views) -> dict[str, np.ndarray]:
    return {f.name: getattr(of, f.name) for f in fields(of) if isinstance(getattr(of, f.name), np.ndarray)}


def test_types_and_shapes() -> None:
    found = arrays(views(ViewPlan(FULL, 1, 50), 0, np.arange(7)))
    expected = {
        "views": (np.int64, (7,)),
        "sample_ids": (np.int64, (7,)),
        "window": (np.int32, (7, 4)),
        "resize": (np.int32, (7, 2)),
        "offset": (np.int32, (7, 2)),
        "flip": (np.bool_, (7,)),
        "colour": (np.float32, (7, 3, 4)),
        "erase": (np.int32, (7, 4)),
        "noise_offset": (np.int32, (7, 2)),
        "partner": (np.int64, (7,)),
        "mix_lambda": (np.float32, (7,)),
        "mix_box": (np.int32, (7, 4)),
    }
    assert {name: (array.dtype.type, array.shape) for name, array in found.items()} == expected


def test_a_view_does_not_depend_on_its_company() -> None:
    plan = ViewPlan(FULL, 1, 5000)
    ids = np.array([4999, 3, 17, 256])
    together = arrays(views(plan, 2, np.arange(5000)))
    for name, array in arrays(views(plan, 2, ids)).items():
        np.testing.assert_array_equal(array, together[name][ids], err_msg=name)


@pytest.mark.parametrize("repeats", [1, 3])
def test_samples_of_several_views_are_those_of_each(repeats: int) -> None:
    policy = FULL.model_copy(update={"repeats": repeats, "auto_augment": "rand-m9-mstd0.5-inc1"})
    plan = ViewPlan(policy, 1, 5000)
    numbers, ids = np.array([7, 2, 7, 0, 2]), np.array([3, 3, 4, 3, 4999])
    mixed = arrays(plan.views(numbers, ids, 300 + ids % 91, 280 + ids % 77))
    for row, (number, one) in enumerate(zip(numbers.tolist(), ids, strict=True)):
        for name, array in arrays(views(plan, number, ids[[row]])).items():
            np.testing.assert_array_equal(array[0], mixed[name][row], err_msg=name)
        assert mixed["sample_ids"][row] == one


@pytest.mark.parametrize(("seed", "view"), [(2, 0), (1, 1)])
def test_seeds_and_views_differ(seed: int, view: int) -> None:
    ids = np.arange(1000)
    one, other = views(ViewPlan(FULL, 1, 1000), 0, ids), views(ViewPlan(FULL, seed, 1000), view, ids)
    assert np.mean(np.all(one.window == other.window, axis=1)) < 0.02
    assert 0.4 < np.mean(one.flip == other.flip) < 0.6


@pytest.mark.parametrize(
    "update", [{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}, {"erase_probability": 0.0}]
)
def test_one_augmentation_leaves_the_others_numbers_alone(update: dict[str, Any]) -> None:
    ids = np.arange(100)
    full = arrays(views(ViewPlan(FULL, 1, 100), 0, ids))
    fewer = arrays(views(ViewPlan(FULL.model_copy(update=update), 1, 100), 0, ids))
    assert len(fewer) < len(full)
    for name, array in fewer.items():
        np.testing.assert_array_equal(array, full[name], err_msg=name)


def test_view_of_an_epoch() -> None:
    some = np.array([3, 0])
    three = ViewPlan(ViewPolicy(num_views=3), 0, 9)
    assert [three.views_at(epoch, some).tolist() for epoch in range(5)] == [[v, v] for v in (0, 1, 2, 0, 1)]
    assert ViewPlan(ViewPolicy(), 0, 9).views_at(7, some).tolist() == [7, 7]


def test_a_seed_outside_its_range_is_refused() -> None:
    with pytest.raises(Refused, match="seed is -1; give a whole number"):
        ViewPlan(ViewPolicy(), -1, 10)


def test_fingerprint_names_what_changes_pixels() -> None:
    plan = ViewPlan(FULL, 1, 10)
    same = ViewPlan(FULL.model_copy(update={"num_views": 4, "size": (64, 64)}), 1, 99)
    assert plan.fingerprint == same.fingerprint
    others = [ViewPlan(FULL, 2, 10), ViewPlan(FULL.model_copy(update={"hue": 0.2}), 1, 10)]
    assert len({plan.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_pinned_views() -> None:
    """Literal numbers: where these change, every stored teacher output belongs to other pixels. Then raise VERSION."""
    plan = ViewPlan(FULL, 20260101, 1_281_167)
    found = views(plan, 5, np.array([0, 3, 11, 1_281_166]))
    assert found.window.tolist() == [[193, 81, 79, 103], [109, 37, 186, 194], [53, 44, 213, 247], [15, 3, 310, 244]]
    assert found.erase.tolist() == [[0, 0, 0, 0], [1, 3, 52, 25], [20, 51, 39, 13], [6, 24, 30, 19]]
    assert found.noise_offset.tolist() == [[13, 23], [57, 34], [24, 46], [11, 52]]
    assert found.mix_box.tolist() == [[10, 35, 24, 24], [0, 0, 0, 0], [0, 0, 0, 0], [15, 20, 49, 44]]
    assert found.partner.tolist() == [1061577, 909433, 605263, 789590]
    assert found.flip.tolist() == [True, False, True, True]
    assert found.mix_lambda.view(np.uint32).tolist() == [1062993920, 1063976710, 1026539351, 1056079872]
    assert found.colour is not None
    assert found.colour[0].view(np.uint32).ravel().tolist() == [
        1059758156,
        1041548810,
        1041829722,
        3181275191,
        1043957552,
        1062019621,
        3165505918,
        3181275191,
        3190007771,
        1055039359,
        1059958748,
        3181275191,
    ]
    assert plan.order(9, np.arange(4)).tolist() == [949327, 990221, 1201468, 409039]
    assert ViewPlan(ViewPolicy(), 1, 10).order(0, np.arange(10)).tolist() == [4, 2, 1, 7, 0, 9, 5, 3, 8, 6]
    assert plan.fingerprint == "71c06589dcaa1fb7dae2caa0c4cd9f4dc448b249583e79e5bfcf146d51fae795"

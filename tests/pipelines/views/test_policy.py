"""What a policy refuses, and what it says."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from pipelines.views.policy import ViewPolicy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup_alpha": 1.5}, "1.5 is above 1.*give 1 or less"),
        ({"scale": (0.5, 0.2)}, "not a range of shares"),
        ({"erase_scale": (0.0, 0.2)}, "not a range of shares"),
        ({"ratio": (0.0, 2.0)}, "not a range of aspect"),
        ({"crop": "center", "scale": (0.5, 1.0)}, "scale=.* has no effect with crop='center'.*crop='resized'"),
        ({"crop": "resized", "padding": 2}, "padding=2 has no effect"),
        ({"crop": "padded", "crop_pct": 0.9}, "crop_pct=0.9 has no effect"),
        ({"size": 0}, "greater than or equal to 1"),
        ({"flip_probability": 1.2}, "less than or equal to 1"),
        ({"brightness": float("nan")}, "finite"),
        ({"num_views": 0}, "greater than or equal to 1"),
        ({"colour_jitter": 0.4}, "Extra inputs"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViewPolicy(**settings)


def test_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ViewPolicy().size = 32  # type: ignore[misc]


@pytest.mark.parametrize(
    "policy", [ViewPolicy(), ViewPolicy(size=(32, 48), crop="padded", padding=0), ViewPolicy.evaluation(224, 0.95)]
)
def test_survives_being_written_down(policy: ViewPolicy) -> None:
    assert ViewPolicy.model_validate(policy.model_dump(mode="json")) == policy


def test_evaluation_draws_nothing() -> None:
    policy = ViewPolicy.evaluation((64, 48), 0.9)
    assert (policy.height, policy.width, policy.crop, policy.crop_pct) == (64, 48, "center", 0.9)
    assert policy.flip_probability == policy.erase_probability == 0
    assert not policy.mixes
    assert not policy.jitters


def test_mixes() -> None:
    assert not ViewPolicy().mixes
    assert ViewPolicy(cutmix_alpha=1).mixes
    assert not ViewPolicy(cutmix_alpha=1, mix_probability=0).mixes


def test_sizes_by_epoch() -> None:
    policy = ViewPolicy(size=224, sizes=((2, 128), (5, (160, 192))), repeats=3)
    assert [policy.at(3 * epoch + 2).size for epoch in range(7)] == [224, 224, 128, 128, 128, (160, 192), (160, 192)]
    assert policy.at(np.array([6, 8])) == ViewPolicy(size=128, repeats=3)
    assert policy.all_sizes == [(224, 224), (128, 128), (160, 192)]
    assert policy.appearance()["sizes"] == [[2, 128], [5, [160, 192]]]
    plain = ViewPolicy()
    assert plain.at(7) is plain
    with pytest.raises(AssertionError, match="one size"):
        policy.at(np.array([3, 6]))
    with pytest.raises(ValidationError, match=r"the epochs \[4, 2\] do not ascend"):
        ViewPolicy(sizes=((4, 128), (2, 160)))

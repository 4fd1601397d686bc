"""Each augmentation's numbers against a plain restatement, and against the distribution they are meant to have."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from pipelines.views import draws
from pipelines.views.draws import Key, Stream
from pipelines.views.philox import uniforms
from pipelines.views.policy import ViewPolicy

IDS = np.arange(4000)
KEY = Key(seed=12, views=np.full(len(IDS), 3), sample_ids=IDS)
SIDES = np.full(len(IDS), 240)


def slow_crop(uniform: list[float], height: int, width: int, policy: ViewPolicy) -> list[int]:
    """RandomResizedCrop as torchvision states it, one picture at a time."""
    low, high = policy.ratio
    for i in range(0, len(uniform), 4):
        share, aspect, y, x = uniform[i : i + 4]
        area = height * width * (policy.scale[0] + share * (policy.scale[1] - policy.scale[0]))
        aspect = math.exp(math.log(low) + aspect * (math.log(high) - math.log(low)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [math.floor(y * (height - h + 1)), math.floor(x * (width - w + 1)), h, w]
    w, h = width, height
    if width / height < low:
        h = max(1, round(width / low))
    elif width / height > high:
        w = max(1, round(height * high))
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize("policy", [ViewPolicy(), ViewPolicy(scale=(0.9, 1.0), ratio=(0.5, 0.6))])
def test_resized_crop_is_torchvisions(policy: ViewPolicy) -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 60, 600), rng.integers(1, 400, 600)
    heights[:200] = 1
    key = Key(9, np.full(600, 1), np.arange(600))
    found = draws.geometry(policy, key, heights, widths)
    uniform = uniforms(9, 1, key.sample_ids, Stream.CROP, 40).tolist()
    expected = [slow_crop(uniform[i], int(heights[i]), int(widths[i]), policy) for i in range(600)]
    assert found.window.tolist() == expected
    assert np.all(found.resize == 224)
    assert np.all(found.offset == 0)


def test_resized_crops_are_distributed_as_torchvisions() -> None:
    window = draws.geometry(ViewPolicy(), KEY, SIDES, SIDES + 80).window
    torch.manual_seed(0)
    image = torch.empty(3, 240, 320)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    assert abs(window.mean(axis=0) - theirs.mean(axis=0)).max() < 5  # pixels; the standard error is about 1.5
    assert abs(window.std(axis=0) - theirs.std(axis=0)).max() < 5


@pytest.mark.parametrize(
    ("size", "crop_pct", "source", "resize", "offset"),
    [
        (224, 0.875, (375, 500), [256, 341], [16, 58]),  # 58.5 rounds to even, as Python's round does
        (224, 0.875, (500, 375), [341, 256], [58, 16]),
        (224, 0.95, (300, 300), [235, 235], [6, 6]),  # 235.8 is rounded down, as timm does
        (32, 1.0, (1, 40), [32, 1280], [0, 624]),
        ((32, 64), 1.0, (100, 100), [64, 64], [16, 0]),
    ],
)
def test_center_crop(
    size: int | tuple[int, int], crop_pct: float, source: tuple[int, int], resize: list[int], offset: list[int]
) -> None:
    policy = ViewPolicy.evaluation(size, crop_pct)
    key = Key(0, np.array([0]), np.array([0]))
    found = draws.geometry(policy, key, np.array(source[:1]), np.array(source[1:]))
    assert found.window.tolist() == [[0, 0, *source]]
    assert found.resize.tolist() == [resize]
    assert found.offset.tolist() == [offset]


def test_padded_crop_shifts_evenly() -> None:
    found = draws.geometry(ViewPolicy(size=32, crop="padded", padding=2), KEY, SIDES, SIDES)
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple((found.offset + 2).T), 1)
    assert ((counts - 160) ** 2 / 160).sum() < 58  # 24 degrees of freedom, p = 1e-4
    assert np.all(found.window == [0, 0, 240, 240])
    assert np.all(found.resize == 32)


def test_flip_probability() -> None:
    assert abs(draws.flip(ViewPolicy(flip_probability=0.3), KEY).mean() - 0.3) < 0.03
    assert not draws.flip(ViewPolicy(flip_probability=0), KEY).any()
    assert draws.flip(ViewPolicy(flip_probability=1), KEY).all()


# RGB -> YIQ as broadcast engineers print it; its chroma axes are mirrored against YUV's, so angles change sign.
YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def test_colour_is_brightness_then_contrast_then_saturation_then_hue() -> None:
    policy = ViewPolicy(brightness=0.4, contrast=0.3, saturation=0.6, hue=0.2)
    maps = draws.colour(policy, KEY)
    assert maps is not None
    uniform = uniforms(12, 3, IDS, Stream.COLOUR, 4)
    for i in range(50):
        pixel = np.random.default_rng(i).random(3)
        b, c, s = (1 - x + 2 * x * u for x, u in zip((0.4, 0.3, 0.6), uniform[i], strict=False))
        expected = (b * pixel - 0.5) * c + 0.5
        grey = expected @ [0.299, 0.587, 0.114]
        y, in_phase, quadrature = YIQ @ (s * expected + (1 - s) * grey)
        angle = -2 * np.pi * 0.2 * (2 * uniform[i, 3] - 1)
        turned = np.exp(1j * angle) * complex(in_phase, quadrature)
        expected = np.linalg.solve(YIQ, [y, turned.real, turned.imag])
        np.testing.assert_allclose(maps[i, :, :3] @ pixel + maps[i, :, 3], expected, atol=2e-3)


def test_colour_leaves_grey_alone_and_nothing_where_nothing_is_asked() -> None:
    assert draws.colour(ViewPolicy(), KEY) is None
    maps = draws.colour(ViewPolicy(saturation=1, hue=0.5), KEY)
    assert maps is not None
    np.testing.assert_allclose(maps[:, :, :3].sum(axis=2) * 0.3 + maps[:, :, 3], 0.3, atol=1e-6)
    negative = draws.colour(ViewPolicy(brightness=3), KEY)
    assert negative is not None
    assert negative[:, 0, 0].min() >= 0


def test_erased_boxes() -> None:
    policy = ViewPolicy(size=(40, 60), erase_probability=0.25, erase_scale=(0.1, 0.2))
    found = draws.erase(policy, KEY)
    assert found is not None
    boxes, noise = found
    erased = boxes[boxes[:, 2] > 0]
    assert abs(len(erased) / len(boxes) - 0.25) < 0.03
    assert erased.min() >= 0
    assert np.all(erased[:, :2] + erased[:, 2:] <= [40, 60])
    area = erased[:, 2] * erased[:, 3] / 2400
    assert 0.09 < area.min() < 0.11
    assert 0.19 < area.max() < 0.21
    assert 0 <= noise.min() < noise.max() < draws.NOISE_SLACK
    assert draws.erase(ViewPolicy(), KEY) is None


@pytest.mark.parametrize(
    ("alpha", "distribution"),
    [
        (1.0, lambda x: x),
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
    ],
)
def test_shares_follow_the_beta_distribution(alpha: float, distribution) -> None:  # type: ignore[no-untyped-def]
    """Kolmogorov's distance to Beta(1, 1) and Beta(1/2, 1/2), whose distribution functions are closed forms."""
    shares = np.sort(draws.symmetric_beta(KEY, np.full(len(IDS), alpha)))
    steps = np.arange(len(shares) + 1) / len(shares)
    expected = distribution(shares)
    distance = max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())
    assert distance * np.sqrt(len(shares)) < 2.2  # p = 1e-4


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.8])
def test_shares_have_the_moments_of_beta(alpha: float) -> None:
    shares = draws.symmetric_beta(KEY, np.full(len(IDS), alpha))
    assert np.all((shares >= 0) & (shares <= 1))
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 4 * math.sqrt(variance / len(shares))
    assert abs(shares.var() / variance - 1) < 0.05


def test_mixtures() -> None:
    policy = ViewPolicy(size=(30, 50), mixup_alpha=0.4, cutmix_alpha=1.0, mix_probability=0.8, switch_probability=0.25)
    partner = IDS ^ 1
    partner[:100] = IDS[:100]  # a hundred without a partner
    share, boxes = draws.mix(policy, KEY, partner)
    area = boxes[:, 2] * boxes[:, 3]
    assert np.all(share[:100] == 1)
    assert np.all(area[:100] == 0)
    assert np.all(boxes[:, :2] + boxes[:, 2:] <= [30, 50])
    np.testing.assert_array_equal(share[area > 0], (1 - area[area > 0] / 1500).astype(np.float32))
    assert abs((share[100:] < 1).mean() - 0.8) < 0.03
    assert abs((area[100:] > 0).mean() - 0.8 * 0.25) < 0.03
    assert len(np.unique(share)) > 2000, "each sample has a share of its own"


def test_cut_boxes_have_the_partners_area_until_they_are_clipped() -> None:
    key = Key(12, np.full(4000, 3), np.arange(4000))
    share, boxes = draws.mix(ViewPolicy(size=200, cutmix_alpha=1.0), key, key.sample_ids ^ 1)
    drawn = draws.symmetric_beta(key, np.ones(4000))
    free = (boxes[:, :2] > 0).all(axis=1) & (boxes[:, :2] + boxes[:, 2:] < 200).all(axis=1)
    assert free.sum() > 300
    assert np.all(share >= drawn.astype(np.float32) - 1e-6), "clipping and rounding leave more of the sample"
    assert np.abs(share - drawn)[free].max() < 0.02  # each side loses less than two of 200 pixels to rounding


def test_only_one_kind_of_mixture_where_one_is_on() -> None:
    partner = IDS ^ 1
    assert not draws.mix(ViewPolicy(mixup_alpha=1), KEY, partner)[1].any()
    share, boxes = draws.mix(ViewPolicy(cutmix_alpha=1), KEY, partner)
    assert np.all((share == 1) == (boxes[:, 2] * boxes[:, 3] == 0))
    assert (share < 1).mean() > 0.9

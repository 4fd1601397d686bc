"""Operations on pictures beside Pillow, as timm and torchvision call it: the same bits.

With two exceptions, where the matrix may differ in its last bit, so that a value that is whole but for rounding may be
truncated to the one below: rotations (sine and cosine are the project's own), and torchvision's shears (it takes the
arc tangent to degrees and back). They are at most 1 off: rotations in fewer than 1 of 1,000 values, shears in 1 of 100.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data.auto_augment import NAME_TO_OP
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import RandAugment

from pipelines.loaders.operations import Operator
from pipelines.loaders.pillow_operations import PillowOperator
from pipelines.views.auto_augment import WORDS, auto_augment
from pipelines.views.operations import FACTORS, Kind
from tests.pipelines.kernels import count_kernels
from tests.pipelines.pictures import picture
from tests.pipelines.views.test_auto_augment import camel

FILL = (124, 116, 104)
FILTERS = {
    "bicubic": (Image.Resampling.BICUBIC, InterpolationMode.BICUBIC),
    "bilinear": (Image.Resampling.BILINEAR, InterpolationMode.BILINEAR),
}
# Five magnitudes a kind, from the ranges of all policies; none where there is nothing to choose.
ARGUMENTS: dict[Kind, tuple[float, ...]] = {
    Kind.SHEAR_X: (-0.99, -0.3, 0.07, 0.27, 0.3),
    Kind.SHEAR_Y: (-0.99, -0.3, 0.07, 0.27, 0.3),
    Kind.TRANSLATE_X: (-90.72, -32, 0, 10.3, 58),
    Kind.TRANSLATE_Y: (-90.72, -32, 0, 10.3, 58),
    Kind.ROTATE: (-135, -30, 1.3, 27, 90),
    Kind.BRIGHTNESS: (0.01, 0.19, 0.77, 1.27, 1.9),
    Kind.COLOR: (0.01, 0.19, 0.77, 1.27, 1.9),
    Kind.CONTRAST: (0.01, 0.19, 0.77, 1.27, 1.9),
    Kind.SHARPNESS: (0.01, 0.19, 0.77, 1.27, 1.9),
    Kind.POSTERIZE: (1, 2, 4, 7, 8),
    Kind.SOLARIZE: (0, 25.5, 128, 201, 256),
    Kind.SOLARIZE_ADD: (0, 11, 50, 99, 110),
    Kind.AUTO_CONTRAST: (0,),
    Kind.EQUALIZE: (0,),
    Kind.INVERT: (0,),
    Kind.BLUR: (0.1, 0.6, 1.41, 1.42, 2.0),
}


TRANSLATIONS = (Kind.TRANSLATE_X, Kind.TRANSLATE_Y)


def by_timm(image: Image.Image, kind: Kind, argument: float, interpolation: str) -> Image.Image:
    """The picture after timm's function of the kind."""
    name = {Kind.TRANSLATE_X: "TranslateX", Kind.BLUR: "GaussianBlur"}.get(kind, camel(kind))
    whole = kind in (Kind.POSTERIZE, Kind.SOLARIZE_ADD)
    plain = kind in (Kind.AUTO_CONTRAST, Kind.EQUALIZE, Kind.INVERT)
    given = () if plain else (int(argument) if whole else argument,)
    return NAME_TO_OP[name](image, *given, fillcolor=FILL, resample=FILTERS[interpolation][0])  # type: ignore[no-any-return]


def by_torchvision(image: Image.Image, kind: Kind, argument: float, interpolation: str) -> Image.Image:
    """The picture after torchvision's transformation of the kind, which asks Pillow.

    Its translation moves the picture, where the matrix that timm gives to Pillow moves the place that is looked at. The
    sign is drawn, so that both are the same augmentation.
    """
    magnitude = argument - 1 if kind in FACTORS else argument / 255 if kind == Kind.SOLARIZE else argument
    magnitude = -magnitude if kind in TRANSLATIONS else magnitude
    transform = RandAugment(fill=FILL)
    mode = FILTERS[interpolation][1]
    return transform._apply_image_or_video_transform(image, camel(kind), magnitude, mode, transform._fill)  # type: ignore[no-any-return]


def synthetic() -> list[Image.Image]:
    """Smooth and noisy pictures, and the hard cases: every value, few values, one colour."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 72, 3), dtype=np.uint8)
    values = np.arange(60 * 72 * 3).reshape(60, 72, 3) // 51 % 256
    few = np.where(noise > 250, 200, 190).astype(np.uint8)
    pixels = (noise, values.astype(np.uint8), few, np.full((60, 72, 3), 77, dtype=np.uint8))
    return [*(picture(60, 72, seed) for seed in range(4)), *map(Image.fromarray, pixels)]


@pytest.fixture(scope="module")
def photographs(shared_data: Path) -> list[Image.Image]:
    with tarfile.open(shared_data / "imagenet_fullsize" / "imagenet-fullsize-96.tar") as tar:
        contents = [tar.extractfile(member) for member in tar if member.isfile()][:8]
        images = [Image.open(io.BytesIO(file.read())).convert("RGB") for file in contents if file]
    return [image.resize((224, 200), Image.Resampling.BICUBIC) for image in images]


def stacked(images: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def check(
    images: list[Image.Image], kind: Kind, interpolation: str, original: Callable[..., Image.Image], share: float
) -> None:
    """Compares at each magnitude: at most the share of values may differ, by 1."""
    for argument in ARGUMENTS[kind]:
        if kind in TRANSLATIONS and original is by_torchvision:
            argument = int(argument)  # its translations are of whole pixels
        want = stacked([original(image, kind, argument, interpolation) for image in images]).short()
        operator = Operator(FILL, interpolation == "bicubic")
        kinds, arguments = np.full((len(images), 1), int(kind)), np.full((len(images), 1), float(argument))
        apart = (operator(stacked(images), kinds, arguments).short() - want).abs()
        assert apart.max() <= (share > 0), (kind, argument, int(apart.max()))
        assert (apart > 0).float().mean() <= share, (kind, argument)


def check_against_timm(images: list[Image.Image], kind: Kind, interpolation: str) -> None:
    check(images, kind, interpolation, by_timm, share=1e-3 if kind == Kind.ROTATE else 0)


def check_against_torchvision(images: list[Image.Image], kind: Kind, interpolation: str) -> None:
    shares = {Kind.ROTATE: 1e-3, Kind.SHEAR_X: 1e-2, Kind.SHEAR_Y: 1e-2}
    check(images, kind, interpolation, by_torchvision, share=shares.get(kind, 0))


TIMM_KINDS = list(ARGUMENTS)
TORCHVISION_KINDS = [kind for kind in ARGUMENTS if kind not in (Kind.SOLARIZE_ADD, Kind.BLUR)]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("kind", TIMM_KINDS, ids=lambda kind: kind.name)
def test_synthetic_pictures_as_timm_shows_them(kind: Kind, interpolation: str) -> None:
    check_against_timm(synthetic(), kind, interpolation)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("kind", TORCHVISION_KINDS, ids=lambda kind: kind.name)
def test_synthetic_pictures_as_torchvision_shows_them(kind: Kind, interpolation: str) -> None:
    check_against_torchvision(synthetic(), kind, interpolation)


@pytest.mark.parametrize("kind", TIMM_KINDS, ids=lambda kind: kind.name)
def test_photographs_as_timm_shows_them(kind: Kind, photographs: list[Image.Image]) -> None:
    check_against_timm(photographs, kind, "bicubic")


@pytest.mark.parametrize("kind", TORCHVISION_KINDS, ids=lambda kind: kind.name)
def test_photographs_as_torchvision_shows_them(kind: Kind, photographs: list[Image.Image]) -> None:
    check_against_torchvision(photographs, kind, "bilinear")


def test_no_bits_kept_is_black_and_none_dropped_is_the_picture() -> None:
    """timm's RandAugment keeps 0 bits at magnitude 10; Pillow made that black, and from version 12 on refuses it."""
    images = stacked(synthetic())
    out = Operator(FILL, True)(images, np.full((8, 1), Kind.POSTERIZE), np.repeat([[0.0], [8.0]], 4, axis=0))
    assert not out[:4].any()
    assert torch.equal(out[4:], images[4:])


@pytest.mark.parametrize("deviation", np.linspace(0.1, 2, 39).tolist())
def test_every_blur_is_pillows(deviation: float) -> None:
    image = picture(40, 30, 1)
    out = Operator(FILL, True)(stacked([image]), np.array([[Kind.BLUR]]), np.array([[deviation]]))
    assert torch.equal(out[0], stacked([image.filter(ImageFilter.GaussianBlur(deviation))])[0])


NAMES = ["rand-m9-mstd0.5-inc1", "ra-2-9", "aa-imagenet", "aa-cifar", "aa-svhn", "trivial", "three"]


def drawn(name: str, num: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    policy = auto_augment(name)
    uniform = np.random.default_rng(5).random((num, WORDS * policy.num_operations))
    return policy.draw(uniform, height, width)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    images = stacked(synthetic() * 4)
    kinds, arguments = drawn(name, len(images), 60, 72)
    before = images.clone()
    together = Operator(FILL, True)(images, kinds, arguments)
    assert torch.equal(images, before), "the loader's memory is read, not written"
    assert not torch.equal(together, before)
    for row in range(0, len(images), 5):
        alone = Operator(FILL, True)(images[[row]], kinds[[row]], arguments[[row]])
        assert torch.equal(alone[0], together[row])
    order = np.random.default_rng(0).permutation(len(images))
    shuffled = Operator(FILL, True)(images[order], kinds[order], arguments[order])
    assert torch.equal(shuffled, together[order])


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_pillow_does_the_same_on_a_cpu(name: str, bicubic: bool) -> None:
    images = stacked(synthetic() * 16)
    kinds, arguments = drawn(name, len(images), 60, 72)
    expected, one_by_one = Operator(FILL, bicubic)(images, kinds, arguments), PillowOperator(FILL, bicubic)
    for row, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(one_by_one(image, kinds[row], arguments[row]), expected[row])


@pytest.mark.parametrize("bicubic", [False, True])
@pytest.mark.parametrize("kind", TIMM_KINDS, ids=lambda kind: kind.name)
def test_pillow_does_the_same_at_every_magnitude(kind: Kind, bicubic: bool, photographs: list[Image.Image]) -> None:
    images = stacked(photographs[:2])
    for argument in ARGUMENTS[kind]:
        kinds, arguments = np.full((2, 1), int(kind)), np.full((2, 1), float(argument))
        expected = Operator(FILL, bicubic)(images, kinds, arguments)
        for row in range(2):
            changed = PillowOperator(FILL, bicubic)(images[row].numpy(), kinds[row], arguments[row])
            np.testing.assert_array_equal(changed, expected[row])


@pytest.mark.parametrize("name", NAMES)
def test_turns_follow_one_another(name: str) -> None:
    images = stacked(synthetic() * 4)
    kinds, arguments = drawn(name, len(images), 60, 72)
    expected = images
    for turn in range(kinds.shape[1]):
        expected = Operator(FILL, False)(expected, kinds[:, [turn]], arguments[:, [turn]])
    assert torch.equal(Operator(FILL, False)(images, kinds, arguments), expected)


def kernels(name: str, num: int) -> int:
    images = torch.randint(0, 256, (num, 20, 20, 3), dtype=torch.uint8)
    kinds, arguments = drawn(name, num, 20, 20)
    return count_kernels(lambda: Operator(FILL, True)(images, kinds, arguments))


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_kernels_does_not_grow_with_the_batch(name: str) -> None:
    """With 256 pictures every group has some; with 1,024 no more kernels are launched."""
    turns = auto_augment(name).num_operations
    assert kernels(name, 1024) == kernels(name, 256)
    assert kernels(name, 256) <= 550 * turns

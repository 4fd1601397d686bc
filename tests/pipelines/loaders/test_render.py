"""The finishing of pictures against a restatement that takes one pixel at a time."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from pipelines.loaders.render import Finish, noise_field
from pipelines.loaders.render_batch import BatchRenderer, change_colour, inside
from pipelines.loaders.render_pictures import PictureRenderer
from pipelines.views.draws import Stream
from pipelines.views.philox import words
from pipelines.views.plan import ViewPlan, Views
from pipelines.views.policy import ViewPolicy
from tests.pipelines.kernels import count_kernels

MEAN, STD = (0.48, 0.45, 0.41), (0.23, 0.22, 0.24)
CPU = torch.device("cpu")
NUM_CLASSES = 4
NOISE = [-0.08599142730236053, 0.4009401500225067, 1.062267780303955]


def finish(policy: ViewPolicy, seed: int = 3) -> Finish:
    return Finish(policy, seed, mean=MEAN, std=STD, num_classes=NUM_CLASSES, device=CPU)


def by_batch(run: Finish) -> Finish:
    """The same with the renderer that a GPU has."""
    here = run.render
    assert isinstance(here, PictureRenderer)
    noise = None if here.noise is None else here.noise.unflatten(1, (-1, 3))
    run.render = BatchRenderer(here.policy, here.mean, here.std, noise)
    return run


def slow_finish(
    images: np.ndarray, views: Views, partner_rows: np.ndarray, noise: np.ndarray | None, erase_first: bool
) -> np.ndarray:
    """[B,3,H,W], by loops over samples, pixels and channels, in float64."""

    def erased(n: int, y: int, x: int, value: np.ndarray) -> np.ndarray:
        assert views.erase is not None
        top, left, h, w = views.erase[n]
        if not (top <= y < top + h and left <= x < left + w):
            return value
        dy, dx = views.noise_offset[n] if views.noise_offset is not None else (0, 0)
        return np.zeros(3) if noise is None else noise[y + dy, x + dx]

    num_all, height, width, _ = images.shape
    early = np.empty(images.shape)
    for n, y, x in np.ndindex(num_all, height, width):
        pixel = images[n, y, x] / 255
        if views.colour is not None:
            pixel = np.clip(views.colour[n, :, :3].astype(float) @ pixel + views.colour[n, :, 3], 0, 1)
        early[n, y, x] = (pixel - MEAN) / np.array(STD)
        if erase_first:
            early[n, y, x] = erased(n, y, x, early[n, y, x])
    out = np.empty((len(partner_rows), 3, height, width))
    for b, y, x in np.ndindex(len(partner_rows), height, width):
        own, other = early[b, y, x], early[partner_rows[b], y, x]
        top, left, h, w = views.mix_box[b]
        if h * w > 0:
            value = other if top <= y < top + h and left <= x < left + w else own
        else:
            value = float(views.mix_lambda[b]) * own + (1 - float(views.mix_lambda[b])) * other
        out[b, :, y, x] = value if erase_first else erased(b, y, x, value)
    return out


@pytest.mark.parametrize("whole_batch", [False, True])
@pytest.mark.parametrize("erase_first", [False, True])
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_against_one_pixel_at_a_time(fill: str, erase_first: bool, whole_batch: bool) -> None:
    policy = ViewPolicy(
        size=(9, 7),
        brightness=0.5,
        contrast=0.5,
        saturation=0.5,
        hue=0.2,
        erase_probability=0.6,
        erase_fill=fill,  # type: ignore[arg-type]
        erase_first=erase_first,
        mixup_alpha=1,
        cutmix_alpha=1,
        mix_probability=0.9,
    )
    ids = np.arange(12)
    views = ViewPlan(policy, 3, 12).views(0, ids, np.full(12, 20), np.full(12, 20))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 9, 7, 3), dtype=np.uint8))
    labels = torch.arange(12) % NUM_CLASSES
    partner_rows = views.partner[:10]  # ids are rows here; two pictures are there as partners only
    run = by_batch(finish(policy)) if whole_batch else finish(policy)
    pictures, soft = run(images, views, partner_rows, labels)

    noise = noise_field(3, 9, 7) if fill == "noise" else None
    expected = slow_finish(images.numpy(), views, partner_rows, noise, erase_first)
    np.testing.assert_allclose(pictures.numpy(), expected, atol=2e-5)
    kinds = {tuple(x) for x in np.stack((views.mix_lambda < 1, views.mix_box[:, 2] > 0), axis=1).tolist()}
    assert kinds == {(False, False), (True, False), (True, True)}, "the test sees every kind of mixture"

    assert soft.shape == (10, NUM_CLASSES)
    assert soft.dtype == torch.float32
    for b in range(10):
        row = np.zeros(NUM_CLASSES)
        row[labels[b]] += views.mix_lambda[b]
        row[labels[views.partner[b]]] += 1 - views.mix_lambda[b]
        np.testing.assert_allclose(soft[b].numpy(), row, atol=1e-6)


COLOURS = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
MIXING = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mix_probability": 0.8}
ERASING = {"erase_probability": 0.6, "erase_fill": "noise"}
SETTINGS = [
    dict(itertools.chain(*(setting.items() for setting in settings)))
    for number in range(5)
    for settings in itertools.combinations((COLOURS, MIXING, ERASING, {"auto_augment": "rand-m9-mstd0.5-inc1"}), number)
]


@pytest.mark.parametrize("settings", [*SETTINGS, {**MIXING, **ERASING, "erase_first": True}])
@pytest.mark.parametrize("size", [(20, 24), 224])
def test_both_renderers_give_the_same_bits(settings: dict[str, object], size: int | tuple[int, int]) -> None:
    """Over parts of a batch, with partners inside, in other parts and outside, and a sample that is there twice."""
    policy = ViewPolicy(size=size, **settings)  # type: ignore[arg-type]
    num, num_asked = (70, 60) if size != 224 else (9, 7)
    ids = np.random.default_rng(1).permutation(num)
    ids[5] = ids[0]
    views = ViewPlan(policy, 3, num).views(4, ids, np.full(num, 50), np.full(num, 60))
    row_of = {sample_id: row for row, sample_id in enumerate(ids.tolist())}
    partner_rows = np.array(
        [row_of.get(partner, row) for row, partner in enumerate(views.partner[:num_asked].tolist())]
    )
    shape = (num, policy.height, policy.width, 3)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    labels = torch.arange(num) % NUM_CLASSES
    ours, _ = finish(policy)(images, views, partner_rows, labels)
    theirs, _ = by_batch(finish(policy))(images, views, partner_rows, labels)
    assert torch.equal(ours, theirs[:num_asked])


@pytest.mark.parametrize("erase_first", [False, True])
def test_the_number_of_kernels_does_not_grow_with_the_batch(erase_first: bool) -> None:
    """Of what a GPU does beside the operations, whose kernels `test_operations` counts."""
    policy = ViewPolicy(size=20, erase_first=erase_first, **COLOURS, **MIXING, **ERASING)  # type: ignore[arg-type]

    def kernels(num: int) -> int:
        ids, sides, labels = np.arange(num), np.full(num, 30), torch.zeros(num, dtype=torch.int64)
        views = ViewPlan(policy, 3, num).views(0, ids, sides, sides)
        images = torch.randint(0, 256, (num, 20, 20, 3), dtype=torch.uint8)
        run = by_batch(finish(policy))
        return count_kernels(lambda: run(images, views, views.partner, labels))

    assert kernels(64) == kernels(256)
    assert kernels(64) <= 150


def test_plain_pictures_are_normalised_and_keep_hard_labels() -> None:
    policy = ViewPolicy.evaluation(5)
    views = ViewPlan(policy, 0, 3).views(0, np.arange(3), np.full(3, 5), np.full(3, 5))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), dtype=np.uint8))
    before = images.clone()
    pictures, labels = finish(policy)(images, views, np.arange(3), torch.tensor([2, 0, 1]))
    expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(pictures, expected)
    assert pictures.is_contiguous(memory_format=torch.channels_last)
    assert pictures.dtype == torch.float32
    assert labels.tolist() == [2, 0, 1]
    assert labels.dtype == torch.int64
    assert torch.equal(images, before), "DALI's buffer is read, not written"


def test_colours_do_not_depend_on_the_batch() -> None:
    pixels = torch.rand(9, 11, 13, 3, generator=torch.Generator().manual_seed(0))
    maps = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(1))
    together = pixels.clone()
    change_colour(together, maps)
    for n in range(9):
        alone = pixels[n : n + 1].clone()
        change_colour(alone, maps[n : n + 1])
        assert torch.equal(alone[0], together[n])


def test_inside() -> None:
    mask = inside(torch.tensor([[1, 2, 2, 1], [0, 0, 0, 0]]), 4, 15)
    assert mask.shape == (2, 4, 15)
    assert mask[0].nonzero().tolist() == [[1, 6], [1, 7], [1, 8], [2, 6], [2, 7], [2, 8]]
    assert not mask[1].any()


def test_noise_has_mean_zero_and_variance_one_and_is_the_same_everywhere() -> None:
    noise = noise_field(5, 20, 16)
    assert noise.shape == (84, 80, 3)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.var() - 1) < 0.05
    assert noise[0, 0].tolist() == NOISE
    assert not np.array_equal(noise, noise_field(6, 20, 16))
    ids = np.arange(84 * 80 * 3)
    at_once = words(5, 0, ids, Stream.NOISE_FIELD, 12).astype(np.float64).sum(axis=1) * 2.0**-32 - 6
    assert np.array_equal(noise, at_once.astype(np.float32).reshape(84, 80, 3))


def test_noise_takes_little_more_memory_than_itself() -> None:
    """A field for pictures of 384 pixels took 800 MB."""
    tracemalloc.start()
    try:
        num_bytes = noise_field(5, 192, 192).nbytes
        assert tracemalloc.get_traced_memory()[1] < 2 * num_bytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5, 0.5)), (MEAN, (0.2, 0.0, 0.2))])
def test_wrong_normalisation_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(Refused, match="three numbers each, std above 0"):
        Finish(ViewPolicy(), 0, mean=mean, std=std, num_classes=2, device=CPU)

"""Features in their principal directions: what is kept comes back, what is lost is measured."""

import numpy as np
import pytest
import torch

from kdcore.batch import Needs, TeacherOutputs
from kdcore.errors import Refused
from pipelines.cache.columns import Storage, columns_for
from pipelines.cache.fitting import fitted_codes
from pipelines.cache.projection import ChannelMoments, LostVariance
from pipelines.cache.rows import decode, encode, row_bytes

SHAPES = {"layer2": (6, 3, 5), "tokens": (4, 8), "pooled": (7,)}
NEEDS = Needs(teacher_taps=frozenset(SHAPES))


def low_rank(num: int, rank: int, noise: float, seed: int) -> TeacherOutputs:
    """Features that lie, but for noise, in `rank` directions around a mean; the directions are those of seed 0."""
    outputs = {}
    for tap, shape in SHAPES.items():
        fixed, free = (torch.Generator().manual_seed(s) for s in (0, seed))
        channels = shape[0] if len(shape) == 3 else shape[-1]
        places = shape[1:] if len(shape) == 3 else shape[:-1]
        directions, mean = torch.randn(rank, channels, generator=fixed), torch.randn(channels, generator=fixed)
        values = torch.randn(num, *places, rank, generator=free) @ directions + mean
        values += noise * torch.randn(values.shape, generator=free)
        outputs[tap] = values.movedim(-1, 1).contiguous(memory_format=torch.channels_last) if places[1:] else values
    return TeacherOutputs(features=outputs)


def test_a_directions_largest_entry_is_positive():
    """Its sign would else be the solver's choice, and the bytes of a cache with it."""
    for seed in range(4):
        moments = ChannelMoments()
        moments.add(torch.randn(200, 12, generator=torch.Generator().manual_seed(seed)))
        basis = moments.projection(12).basis
        assert (basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_the_directions_are_those_of_a_singular_value_decomposition():
    values = low_rank(50, 3, 0.1, 1).features["tokens"]
    moments = ChannelMoments()
    for part in values.split(7):
        moments.add(part)
    found = moments.projection(3)
    flat = values.flatten(0, 1).double().numpy()
    _, singular, right = np.linalg.svd(flat - flat.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.basis.numpy() @ right[:3].T), np.eye(3), atol=1e-5)
    lost = LostVariance(found)
    lost.add(values)
    assert lost.share == pytest.approx(float((singular[3:] ** 2).sum() / (singular**2).sum()), rel=1e-4)


@pytest.mark.parametrize(("features", "bound"), [("float32", 1e-4), ("float16", 4e-3), ("int8", 4e-2)])
def test_what_lies_in_the_directions_comes_back(features, bound):
    storage = Storage(features=features, project={"layer2": 2, "tokens": 2, "pooled": 2})
    columns = columns_for(NEEDS, SHAPES, 3, (8, 8), storage)
    codes, error = fitted_codes(columns, lambda: [low_rank(40, 2, 0.0, 1)], lambda: [low_rank(40, 2, 0.0, 2)])
    assert set(error) == {f"share of variance lost of features.{tap}" for tap in SHAPES}
    assert max(error.values()) < 1e-9
    original = low_rank(5, 2, 0.0, 3)
    again = decode(columns, encode(columns, original, codes), codes)
    for tap, tensor in original.features.items():
        assert again.features[tap].shape == tensor.shape
        assert again.features[tap].stride() == tensor.stride()
        assert float((again.features[tap] - tensor).abs().max()) < bound * float(tensor.abs().max()), tap


def test_bytes_and_the_measured_loss():
    """2 of 6 channels of a map of 15 places; the loss is measured on other samples than the fit's."""
    storage = Storage(project={"layer2": 2})
    columns = columns_for(NEEDS, SHAPES, 3, (8, 8), storage)
    assert row_bytes(columns) == 2 * (2 * 15 + 4 * 8 + 7)
    codes, error = fitted_codes(columns, lambda: [low_rank(40, 6, 0.0, 1)], lambda: [low_rank(40, 6, 0.0, 2)])
    original = low_rank(40, 6, 0.0, 2).features["layer2"]
    mean = codes["features.layer2"].mean[:, None, None]
    again = decode(columns, encode(columns, low_rank(40, 6, 0.0, 2), codes), codes).features["layer2"]
    share = float((original - again).square().sum() / (original - mean).square().sum())
    assert error["share of variance lost of features.layer2"] == pytest.approx(share, rel=1e-3)
    assert 0.05 < share < 0.9


def test_agreement_notices_a_changed_row():
    storage = Storage(project={"layer2": 2})
    columns = columns_for(NEEDS, SHAPES, 3, (8, 8), storage)
    codes, _ = fitted_codes(columns, lambda: [low_rank(40, 6, 0.0, 1)], lambda: [low_rank(40, 6, 0.0, 2)])
    column, code = columns[0], codes["features.layer2"]
    original = low_rank(5, 6, 0.0, 3)
    stored = decode(columns, encode(columns, original, codes), codes).features["layer2"]
    fresh = original.features["layer2"]
    assert column.agrees(fresh, stored, 1e-4, code).all()
    stored[3] *= 1.05
    assert column.agrees(fresh, stored, 1e-4, code).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("project", "message"),
    [
        (
            {"layer3": 2},
            r"names the tap 'layer3', which is not stored; stored are layer2, pooled, tokens; .*cache.taps",
        ),
        ({"layer2": 6}, r"cache.project.layer2=6 saves nothing: the features have 6 channels"),
    ],
)
def test_a_projection_that_cannot_be_is_refused(project, message):
    with pytest.raises(Refused, match=message):
        columns_for(NEEDS, SHAPES, 3, (8, 8), Storage(project=project))

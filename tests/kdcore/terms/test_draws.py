"""Random numbers as a function of seed, stream, epoch and sample."""

from __future__ import annotations

import pytest
import torch

from kdcore.batch import TeacherOutputs
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.draws import Draws, DrawSource, bits, expected_passes, mix, uniforms

BITS = 2**64


def inputs(sample_ids, epoch=0.0, views=None):
    none = torch.zeros(len(sample_ids), 2)
    views = None if views is None else torch.tensor(views)
    return TermInputs(none, none, TeacherOutputs(), sample_ids=torch.as_tensor(sample_ids), views=views, epoch=epoch)


def test_splitmix64_known_answers():
    """The outputs published for the seed 1234567."""
    outputs = bits(torch.tensor([1234567]), 5)[0]
    assert [int(v) % BITS for v in outputs] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_mix_against_integers_of_any_size():
    def plain(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % BITS
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % BITS
        return x ^ (x >> 31)

    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert [int(v) % BITS for v in mix(torch.tensor(values))] == [plain(v % BITS) for v in values]


def test_a_row_depends_on_its_sample_alone():
    both = Draws(inputs([5, 9]), seed=1).normals(7)
    assert torch.equal(both[1:], Draws(inputs([9]), seed=1).normals(7))
    assert torch.equal(both, Draws(inputs([5, 9], epoch=0.99), seed=1).normals(7))


def test_views_of_one_sample_draw_anew():
    """An epoch may show a sample more than once; where each is shown once, in the epoch's view, no bit changes."""
    several = Draws(inputs([5, 5, 5, 9], views=[6, 7, 8, 7], epoch=3.5), seed=1).normals(7)
    assert len({tuple(row.tolist()) for row in several}) == 4
    assert torch.equal(several[1:2], Draws(inputs([5], views=[7], epoch=3.5), seed=1).normals(7))
    plain = Draws(inputs([5, 9], epoch=3.5), seed=1).normals(7)
    assert torch.equal(Draws(inputs([5, 9], views=[3, 3], epoch=3.5), seed=1).normals(7), plain)
    round_again = Draws(inputs([5, 9], views=[1, 0], epoch=3.5), seed=1, num_views=2).normals(7)  # view 3 of 2 is 1
    assert torch.equal(round_again[0], plain[0])
    assert not torch.equal(round_again[1], plain[1])


@pytest.mark.parametrize("name", ["crd", "vitkd", "diffkd", "diffkd_logits"])
def test_a_terms_seed_is_the_runs_unless_it_has_its_own(name):
    """0 of either is the same."""
    plain, own = (parse_term({"term": name, "weight": 1, **fields}) for fields in ({}, {"seed": 0}))
    sources = [
        DrawSource.of(term, TermContext({}, {}, num_classes=2, num_samples=9, seed=seed, num_views=4))
        for term, seed in ((plain, 3), (plain, 0), (own, 3))
    ]
    assert sources == [DrawSource(3, 4), DrawSource(0, 4), DrawSource(0, 4)]


@pytest.mark.parametrize("change", [{"epoch": 1.0}, {"seed": 2}, {"stream": 1}, {"ids": [6]}])
def test_everything_in_the_key_matters(change):
    base = Draws(inputs([5]), seed=1).below(torch.tensor([2**62]), 8)
    other = Draws(
        inputs(change.get("ids", [5]), change.get("epoch", 0.0)), change.get("seed", 1), change.get("stream", 0)
    )
    assert not torch.equal(base, other.below(torch.tensor([2**62]), 8))


def test_uniforms_fill_the_unit_interval():
    values = uniforms(torch.arange(100), 1000)
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, bins=50, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 86  # chi-square, 49 degrees of freedom, 0.1 %


def test_normals_are_standard():
    values = Draws(inputs(range(200)), seed=3).normals(500).double()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.1
    assert torch.isfinite(values).all()


def test_below_and_integers_keep_their_bounds():
    values = Draws(inputs([1, 2]), seed=0).below(torch.tensor([3, 100]), 500)
    assert sorted(values[0].unique().tolist()) == [0, 1, 2]
    assert values[1].min() >= 0
    assert 50 < values[1].max() < 100
    assert Draws(inputs(range(300)), seed=0).integers(4).unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bound", [2, 3, 22, 100, 49_500])
def test_distinct_values_are_a_permutation_of_each_rows_own(bound):
    rows = Draws(inputs(range(6)), seed=0).distinct(torch.full((6,), bound), bound)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(bound).expand(6, -1))
    assert bound == 2 or not torch.equal(rows[0], rows[1])


def test_distinct_values_are_uniform_singly_and_in_pairs():
    """Of the first three values, every two take every pair of different values equally often."""
    for bound in (18, 30):
        rows = Draws(inputs(range(42_000)), seed=2).distinct(torch.full((42_000,), bound), 3)
        for a, b in ((0, 1), (1, 2), (0, 2)):
            counts = torch.bincount(rows[:, a] * bound + rows[:, b], minlength=bound**2).view(bound, bound)
            assert (counts.diagonal() == 0).all()
            expected = 42_000 / (bound * (bound - 1))
            deviations = (counts - expected) ** 2 / expected
            degrees = bound * (bound - 1) - 1
            assert deviations.sum() - deviations.diagonal().sum() < degrees + 4 * (2 * degrees) ** 0.5


def test_distinct_values_need_as_many_as_are_drawn():
    with pytest.raises(AssertionError, match="more different values"):
        Draws(inputs([1, 2]), seed=0).distinct(torch.tensor([9, 4]), 5)


def test_order_is_a_permutation():
    rows = Draws(inputs(range(20)), seed=0).order(9)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(9).expand(20, -1))
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_bits():
    rows = torch.arange(-50, 50)
    assert torch.equal(bits(rows.cuda(), 100).cpu(), bits(rows, 100))
    assert torch.equal(uniforms(rows.cuda(), 100).cpu(), uniforms(rows, 100))


def test_a_missing_epoch_is_a_programming_error():
    with pytest.raises(AssertionError, match="epoch"):
        Draws(inputs([1], epoch=None), seed=0)


@pytest.mark.parametrize(("bound", "count"), [(10, 10), (37, 20), (1000, 1000), (1_281_167, 512)])
def test_what_the_host_knows_changes_no_value(bound, count):
    """Passes that are made unasked, as many as are expected, leave as many values as the bound's share foretells."""
    draws, bounds = Draws(inputs(range(8)), seed=3), torch.full((8,), bound)
    side = bounds.double().sqrt().ceil().long()[:, None]
    plain = draws._permuted(torch.arange(count).expand(8, -1), side)
    while bool((plain >= bound).any()):
        plain = torch.where(plain >= bound, draws._permuted(plain, side), plain)
    assert torch.equal(draws.distinct(bounds, count, bound), plain)
    assert torch.equal(draws.distinct(bounds, count), plain)


def test_the_passes_that_are_expected():
    """Few for many samples: a sample of ImageNet's is outside its square with less than two in a thousand."""
    assert [expected_passes(*one) for one in ((1_281_167, 64 * 16384), (50_000, 64 * 16384), (100, 64))] == [3, 4, 6]

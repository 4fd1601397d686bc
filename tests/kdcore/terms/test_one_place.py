"""Losses on where features are strong: refused where there is one place, and silent of maps that are constant."""

from __future__ import annotations

import pytest
import torch

from kdcore.errors import Refused
from kdcore.rehearsal import rehearse
from kdcore.terms.attention import at
from kdcore.terms.spectral import spectral
from tests.kdcore.distillers import make, network


@pytest.mark.parametrize("student", [(2, 3), (2, 3, 1, 1), (2, 3, 4, 4), (2, 1, 3)])
def test_attention_of_one_place_is_refused(student):
    """Of vectors, of 1x1 maps, of a map beside a vector, of one token: it was 0, and taught nothing."""
    with pytest.raises(
        Refused, match=r"maps of one place.*nothing is learnt; take taps of larger maps, or fitnet or rkd"
    ):
        at(torch.randn(student), torch.randn(2, 5) if len(student) != 3 else torch.randn(2, 1, 5))
    at(torch.randn(2, 3, 1, 4), torch.randn(2, 3, 1, 2))


@pytest.mark.parametrize(("size", "places"), [((1, 1), "one place"), ((2, 1), "two places"), ((1, 2), "two places")])
def test_frequencies_of_one_or_two_places_are_refused(size, places):
    """The scaled values of two are 0 and 1: the loss was 0 or the root of 2, and taught nothing."""
    with pytest.raises(Refused, match=f"maps of {places}.*nothing is learnt; take taps of larger maps"):
        spectral(torch.randn(2, 3, *size), torch.randn(2, 4, *size))


@pytest.mark.parametrize("size", [(3, 1), (1, 3), (2, 2)])
def test_frequencies_of_three_places_teach(size):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 3, *size, generator=generator) for _ in range(2))
    spectral(student.requires_grad_(), teacher).mean().backward()
    assert student.grad.norm() > 1e-2


def test_the_rehearsal_names_the_term():
    pairs = [{"student": "layer3", "teacher": "classifier_input"}]
    distiller = make({"term": "at", "weight": 1000, "pairs": pairs}, teacher=network(9))
    with pytest.raises(Refused, match=r"term at \(student layer3: map .*maps of one place"):
        rehearse(distiller, (16, 16), 4, mixes=False)


@pytest.mark.parametrize("level", [0.0, 1.0, 0.3333, 1e4])
def test_constant_maps_have_no_spectrum_and_no_gradient(level):
    """One of 10^23 was measured."""
    generator = torch.Generator().manual_seed(0)
    student = torch.full((2, 4, 4, 4), level)
    student[1] = torch.rand(4, 4, 4, generator=generator)
    student.requires_grad_()
    spectral(student, torch.rand(2, 4, 4, 4, generator=generator)).sum().backward()
    assert not student.grad[0].any()
    assert student.grad[1].any()
    assert student.grad[1].abs().max() < 100
    assert spectral(torch.full((1, 4, 4, 4), level), torch.ones(1, 4, 4, 4)).tolist() == [0]

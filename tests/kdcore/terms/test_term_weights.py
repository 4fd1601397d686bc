"""A term's weight is a function of the epoch: it warms up, stays, and decays to the run's end."""

from __future__ import annotations

import pytest

from kdcore.errors import Refused
from kdcore.terms import parse_term

KD = {"term": "kd", "weight": 2, "temperature": 4}


@pytest.mark.parametrize(
    ("epoch", "share"), [(0.0, 1.0), (30.0, 1.0), (47.5, (2 + 2**0.5) / 4), (65.0, 0.5), (100.0, 0.0), (101.0, 0.0)]
)
def test_a_decay_is_a_half_cosine_to_the_end_of_the_run(epoch, share):
    """w (1 + cos(pi (epoch - start) / (end - start))) / 2, as WKD's authors have it."""
    term = parse_term(KD | {"decay_from_epoch": 30})
    assert term.weight_at(epoch, 100) == pytest.approx(2 * share, abs=1e-15)


def test_a_weight_may_warm_up_and_decay():
    term = parse_term(KD | {"warmup_epochs": 10, "decay_from_epoch": 20})
    assert [term.weight_at(epoch, 40) for epoch in (0, 5, 10, 20, 30, 40)] == pytest.approx([0, 1, 2, 2, 1, 0])
    constant = [term.is_constant_at(epoch) for epoch in (0, 9.9, 10, 19.9, 20, 40)]
    assert constant == [False, False, True, True, False, False]


def test_a_weight_without_a_decay_needs_no_length_of_the_run():
    term = parse_term(KD)
    term.check_epochs(None)
    assert term.weight_at(1000.0) == 2
    assert term.is_constant_at(0.0)


@pytest.mark.parametrize(("num_epochs", "said"), [(30, "the run has 30 epochs"), (None, "no known number of epochs")])
def test_a_decay_that_would_never_begin_is_refused(num_epochs, said):
    term = parse_term(KD | {"decay_from_epoch": 30})
    with pytest.raises(Refused, match=f"term 'kd': its weight decays from epoch 30 on, but .*{said}"):
        term.check_epochs(num_epochs)

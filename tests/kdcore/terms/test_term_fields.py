"""The fields of every term: which must be given, which are refused, and that each says what it is."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kdcore.section import meaning
from kdcore.terms import REGISTRY, parse_term
from tests.kdcore.terms.table import STAGES, TERMS, make


@pytest.mark.parametrize("name", TERMS)
def test_survives_a_round_trip_through_plain_data(name):
    term, _ = make(name)
    assert parse_term(term.model_dump(mode="json")) == term


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_must_be_given_and_unknown_fields_are_refused(name):
    with pytest.raises(ValidationError, match="weight"):
        parse_term({"term": name, **TERMS[name]})
    with pytest.raises(ValidationError, match="lambda"):
        parse_term({"term": name, "weight": 1, "lambda": 1, **TERMS[name]})


REFUSED = [
    ("kd", {"temperature": 0}),
    ("ttm", {"gamma": 0}),
    ("ttm", {"gamma": 1.5}),
    ("wttm", {"gamma": -0.1}),
    ("dkd", {"non_target_weight": -1}),
    ("nkd", {"temperature": -2}),
    ("dist", {"temperature": 0}),
    ("ce", {"label_smoothing": 1.0}),
    ("feature_mse", {"pairs": []}),
    ("feature_only", {"detach_head_at": "stage9"}),
    ("fitnet", {"pairs": STAGES}),
    ("vid", {"initial_variance": 0}),
    ("rkd", {"angle_weight": -1}),
    ("crd", {"temperature": 0}),
    ("crd", {"momentum": 1}),
    ("crd", {"negatives": "hard"}),
    ("vitkd", {"mask_ratio": 1}),
    ("diffkd", {"num_steps": 0}),
    ("diffkd", {"latent_channels": 0}),
    ("kd", {"weight": -1}),
    ("kd", {"decay_from_epoch": -1}),
    ("itrd", {"alpha": 0.5}),
    ("rld", {"confidence_temperature": 0}),
    ("mlkd", {"temperatures": []}),
    ("wkd_l", {"regularisation": 0}),
    ("wkd_l", {"iterations": 0}),
    ("wkd_f", {"grid": 0}),
    ("wkd_f", {"projector": "linear"}),
]


@pytest.mark.parametrize(("name", "fields"), REFUSED, ids=[f"{n}-{next(iter(f))}" for n, f in REFUSED])
def test_hyper_parameters_without_meaning_are_refused(name, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        parse_term({"term": name, "weight": 1, **TERMS[name], **fields})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *[("ttm", "gamma"), ("wttm", "gamma"), ("dkd", "non_target_weight"), ("kd", "temperature")],
        *[("itrd", "alpha"), ("rld", "correlation_weight"), ("wkd_l", "temperature")],
    ],
)
def test_what_has_no_common_default_must_be_given(name, missing):
    fields = {key: value for key, value in TERMS[name].items() if key != missing}
    with pytest.raises(ValidationError, match=missing):
        parse_term({"term": name, "weight": 1, **fields})


@pytest.mark.parametrize("name", TERMS)
def test_every_field_says_what_it_is(name):
    """The docstring below a field is its meaning: what `python -m ops` prints, and what a schema holds."""
    term = REGISTRY[name]
    assert [field for field in term.model_fields if field != "term" and not meaning(term, field)] == []

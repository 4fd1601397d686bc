"""A user's own loss that does not say, in the way it has to, what it reads or what it weighs: refused with its line."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
from pydantic import ValidationError, model_validator

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms import Term, base, parse_term
from kdcore.terms.logits import cross_entropy
from tests.kdcore.distillers import CE, make

OWN = {"term": "own_in_a_test", "weight": 1.0}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(base, "REGISTRY", copy.copy(base.REGISTRY))


def define(declared=Needs, weight=None, made=None):
    """Register a loss whose needs(), weight_at() and validator are these functions."""

    class Own(Term):
        term: Literal["own_in_a_test"] = "own_in_a_test"

        @model_validator(mode="after")
        def check(self):
            return self if made is None else made(self)

        def needs(self):
            return declared()

        def loss(self, inputs):
            return cross_entropy(inputs.student_logits, inputs.labels)

        def weight_at(self, epoch, num_epochs=None):
            return self.weight if weight is None else weight(epoch)

    return Own


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        (
            lambda: Needs(logits=True),
            r".*test_foreign.py:\d+: TypeError: .*'logits'; correct needs\(\), .*teacher_logits",
        ),
        (
            lambda: Needs(teacher_taps="layer3"),
            r".*test_foreign.py:\d+: teacher_taps='layer3': give a set .*{'layer3'}",
        ),
        (
            lambda: Needs(student_taps=True),
            r".*test_foreign.py:\d+: student_taps=True: give a set of the names of taps",
        ),
        (lambda: Needs(class_means=[3]), r".*test_foreign.py:\d+: class_means=\[3\]: give a set of the names of taps"),
        (
            lambda: {"teacher_logits"},
            r": needs\(\) returns a set; return a Needs, such as Needs\(teacher_logits=True\)",
        ),
        (lambda: None, r": needs\(\) returns a NoneType; return a Needs"),
    ],
)
def test_needs_that_are_none(declared, reason):
    """They were called a fault of the project, with a traceback."""
    kind = define(declared)
    with pytest.raises(Refused, match=f"^term own_in_a_test(?: at )?{reason}"):
        parse_term(OWN)
    made = kind(weight=1.0)
    with pytest.raises(Refused, match=f"^term own_in_a_test(?: at )?{reason}"):
        parse_term(made)


@pytest.mark.parametrize("form", [list, tuple, set, frozenset, dict.fromkeys, iter])
def test_taps_in_any_collection(form):
    needs = Needs(teacher_taps=form(["a", "b"]))
    assert needs == Needs(teacher_taps=frozenset({"a", "b"}))
    assert (needs | Needs(teacher_taps=form(["c"]))).teacher_taps == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (
            lambda epoch: 1 / (2 - epoch),
            r" at .*test_foreign.py:\d+: ZeroDivisionError: .*; correct weight_at\(\), which",
        ),
        (lambda epoch: None, r": TypeError: .*NoneType.*; correct weight_at\(\), which returns a number"),
        (lambda epoch: float("nan"), r": weight_at\(\) returns nan at epoch 0; return a finite number"),
    ],
)
def test_a_weight_that_is_no_number_at_an_epoch_of_the_run(weight, reason):
    define(weight=weight)
    with pytest.raises(Refused, match=f"^term own_in_a_test{reason}"):
        make(CE, OWN, num_epochs=3)


def test_a_class_that_cannot_be_made():
    """An invalid field stays the recipe's own."""
    define(made=lambda term: term.nothing)
    with pytest.raises(
        Refused, match=r"^term own_in_a_test at .*test_foreign.py:\d+: AttributeError: .*; correct the cl"
    ):
        parse_term(OWN)
    define()
    assert parse_term(OWN).needs() == Needs()
    with pytest.raises(ValidationError, match="weight"):
        parse_term(OWN | {"weight": -1})

"""Losses of plug-ins: whatever they raise is their author's to correct, and is reported with its line."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kdcore.batch import Needs
from kdcore.errors import Refused, raised_at, typed_line
from kdcore.layout import NETWORK_ERRORS

if TYPE_CHECKING:
    from kdcore.terms.base import Term  # it imports this module


def complaints_of(term: Term) -> tuple[type[Exception], ...]:
    """Return the exceptions by which a term says that its inputs do not fit: any for a plug-in's; others are bugs."""
    return (Exception,) if is_foreign(type(term)) else (*NETWORK_ERRORS, Refused)


def is_foreign(kind: type[Term]) -> bool:
    """Whether a term's class is a plug-in's."""
    return not kind.__module__.startswith("kdcore.")


def make_term(kind: type[Term], data: dict[str, Any]) -> Term:
    """Make a term of a recipe's mapping. Refused where a plug-in's cannot be made, or does not say what it reads."""
    with _naming(kind, "correct the class"):
        term = kind.model_validate(data)
    check_declared(term)
    return term


def check_declared(term: Term) -> None:
    """Refuse a plug-in's term whose needs() raises, or returns anything but `Needs`: later calls are not guarded."""
    if not is_foreign(type(term)):
        return
    known = ", ".join(field.name for field in fields(Needs))
    with _naming(type(term), f"correct needs(), which returns a Needs, of {known}"):
        needs: object = term.needs()
    if not isinstance(needs, Needs):
        raise Refused(
            f"term {term.term}: needs() returns a {type(needs).__name__}; return a Needs, such as "
            f"Needs(teacher_logits=True); it may have {known}"
        )


def check_weights(name: str, term: Term, num_epochs: float | None) -> None:
    """Refuse a plug-in's term whose weight_at() raises, or returns anything but a finite number, at any epoch."""
    if not is_foreign(type(term)):
        return
    for epoch in range(1 + math.ceil(num_epochs or 0)):
        with _naming(type(term), "correct weight_at(), which returns a number", name):
            weight: Any = term.weight_at(float(epoch), num_epochs)
            if not math.isfinite(weight * 1.0):
                raise Refused(f"weight_at() returns {weight} at epoch {epoch}; return a finite number")


def refusal_of_foreign(described: str, term: Term, error: Exception) -> Refused:
    """Return the refusal of a plug-in's term that raised `error`: with its line, and what it may read there."""
    return Refused(
        f"{described}{_place(type(term), error)}: {typed_line(error)}; correct the loss: it may read "
        f"labels, student_logits and what needs() declares ({_declared(term.needs())})"
    )


@contextmanager
def _naming(kind: type[Term], remedy: str, name: str | None = None) -> Iterator[None]:
    """Refuse, with its line, what a plug-in's class raises; invalid fields stay what they are."""
    try:
        yield
    except ValidationError:
        raise
    except Exception as error:
        if not is_foreign(kind):
            raise
        said = str(error) if isinstance(error, Refused) else f"{typed_line(error)}; {remedy}"
        raise Refused(f"term {name or kind.model_fields['term'].default}{_place(kind, error)}: {said}") from error


def _place(kind: type[Term], error: Exception) -> str:
    """Return the line of the plug-in's package at which an error was raised: ' at FILE:LINE'."""
    return raised_at({kind.__module__.partition(".")[0]}, error)


def _declared(needs: Needs) -> str:
    """Name what needs declare: 'teacher_logits, student_taps layer2 layer3'; 'nothing more' for none."""
    named = []
    for field in fields(needs):
        value = getattr(needs, field.name)
        if value:
            taps = sorted(value) if isinstance(value, frozenset) else [value] if isinstance(value, str) else []
            named.append(" ".join([field.name, *taps]))
    return ", ".join(named) or "nothing more"

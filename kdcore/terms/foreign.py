"""Losses of plug-ins: whatever they raise is their author's to correct, and is reported with its line."""

from __future__ import annotations

import traceback
from dataclasses import fields

from kdcore.batch import Needs
from kdcore.errors import Refused, typed_line
from kdcore.layout import NETWORK_ERRORS
from kdcore.terms.base import Term


def complaints_of(term: Term) -> tuple[type[Exception], ...]:
    """Return the exceptions by which a term says that its inputs do not fit: any for a plug-in's; others are bugs."""
    return (Exception,) if is_foreign(term) else (*NETWORK_ERRORS, Refused)


def is_foreign(term: Term) -> bool:
    """Whether a term is a plug-in's."""
    return not type(term).__module__.startswith("kdcore.")


def refusal_of_foreign(described: str, term: Term, error: Exception) -> Refused:
    """Return the refusal of a plug-in's term that raised `error`: with its line, and what it may read there."""
    return Refused(
        f"{described}{_place(term, error)}: {typed_line(error)}; correct the loss: it may read labels, student_logits "
        f"and what needs() declares ({_declared(term.needs())})"
    )


def _place(term: Term, error: Exception) -> str:
    """Return the line of the plug-in's package at which an error was raised: ' at FILE:LINE'."""
    package = type(term).__module__.partition(".")[0]
    lines = [
        f" at {frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == package
    ]
    return "".join(lines[-1:])


def _declared(needs: Needs) -> str:
    """Name what needs declare: 'teacher_logits, student_taps layer2 layer3'; 'nothing more' for none."""
    named = []
    for field in fields(needs):
        value = getattr(needs, field.name)
        if value:
            taps = sorted(value) if isinstance(value, frozenset) else [value] if isinstance(value, str) else []
            named.append(" ".join([field.name, *taps]))
    return ", ".join(named) or "nothing more"

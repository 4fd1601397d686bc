"""Reports on a run never end it: one that fails is left out, and a line says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kdcore.errors import typed_line


@contextmanager
def optional(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Run the body, which only reports; where it fails, say in one line that `what` is left out, and why.

    For costs, pictures and cards. Not for what a run is about: its weights, its metrics, its checkpoints.
    """
    try:
        yield
    except Exception as error:
        say(f"{what} left out ({typed_line(error)})")

"""Reports on a run never end it: one that fails is left out, and a line says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def optional(what: str, say: Callable[[str], None]) -> Iterator[None]:
    """Run the body, which only reports; where it fails, say in one line that `what` is left out, and why.

    For costs, pictures and cards. Not for what a run is about: its weights, its metrics, its checkpoints.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        say(f"{what} left out ({type(error).__name__}{': ' if reason else ''}{reason})")

"""Where in a run an error was raised.

Not here: what an error says (`cluster.error_text`), and what Ray says of a group of workers (`cluster.nodes.errors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.error_text import FailedAt
from cluster.training.opening import NotOpened
from kdcore.errors import Refused, RunFailed


@contextmanager
def with_place(place: Callable[[], str], on_error: Callable[[], None]) -> Iterator[None]:
    """Add the place, such as 'rank 3, step 120', to whatever is raised inside, and call on_error.

    Raises FailedAt for Refused, since by then the run is under way, and for RunFailed.
    """
    try:
        yield
    except Exception as error:
        from cluster.training.finite import NotFinite  # only here: a run's driver has no torch

        on_error()
        if isinstance(error, NotFinite | NotOpened):  # the first names its step, the driver explains the second
            raise
        if isinstance(error, Refused | RunFailed):
            raise FailedAt(f"{place()}: {error}") from error
        error.add_note(place())
        raise

"""What an error says of itself and of where it came up, for those who know nothing of Ray.

Not here: what a run's workers ended by (`cluster.training.recovery`, `cluster.training.crash`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.training.opening import NotOpened
from kdcore.errors import Refused, RunFailed


class FailedAt(RunFailed):
    """A run that failed by a sentence; the message begins with the place, such as 'rank 3, step 120'."""


@contextmanager
def with_place(place: Callable[[], str], on_error: Callable[[], None]) -> Iterator[None]:
    """Add to whatever is raised inside where it happened, such as 'rank 3, step 120', and call on_error.

    FailedAt for what is refused inside, since by then the run is under way, and for what has failed by a sentence.
    """
    try:
        yield
    except Exception as error:
        from cluster.training.finite import NotFinite  # here alone: whoever drives a run has no torch

        on_error()
        if isinstance(error, NotFinite | NotOpened):  # which names the step that it began in; which the driver explains
            raise
        if isinstance(error, Refused | RunFailed):
            raise FailedAt(f"{place()}: {error}") from error
        error.add_note(place())
        raise


# How Ray goes on once it has said which ranks are missing: a remedy that is none here, for recipes set the time.
RAYS_ADVICE = "You can set the timeout with the RAY_TRAIN_"


def in_one_line(error: BaseException) -> str:
    """Return what a run ended by: the sentence of an error that is one, or the kind and the last line of any other."""
    if isinstance(error, Refused | RunFailed):
        return str(error)
    place = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {last_line(error)}{place}"


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message that says what happened, or its kind where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(RAYS_ADVICE)]
    return lines[-1] if lines else type(error).__name__

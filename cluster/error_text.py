"""What an error says, in one line, for users who know nothing of Ray."""

from __future__ import annotations

from kdcore.errors import Refused, RunFailed

# How Ray goes on once it has said which ranks are missing: not a remedy here, since recipes set the timeout.
RAYS_ADVICE = "You can set the timeout with the RAY_TRAIN_"


class FailedAt(RunFailed):
    """A run that failed with a message for people; it begins with the place, such as 'rank 3, step 120'."""


def ending_of(error: BaseException) -> str:
    """Return what ended a run: the message of Refused or RunFailed, or the type and the last line of another error."""
    if isinstance(error, Refused | RunFailed):
        return str(error)
    place = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {last_line(error)}{place}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none; traces and advice follow."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message that says what happened, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(RAYS_ADVICE)]
    return lines[-1] if lines else type(error).__name__

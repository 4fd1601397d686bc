"""The errors that are written for users: the command line prints these, and only these, as one line.

    Exception
    ├── ValueError
    │   └── Refused             what was asked for cannot be done as it stands; says the value, the place and the remedy
    └── RuntimeError
        └── RunFailed           a run, a build or a job ended by something that happened on the way
            └── ClusterFailed   the same, by the loss of machines, processes or room, not by a fault of its own

Every other exception is a bug in the project and keeps its traceback; `assert` is for programmers. Credentials are
removed from the messages of `Refused` and `RunFailed`.
"""

import difflib
import traceback
from collections.abc import Collection, Iterable

from kdcore.credentials import without_credentials


class Refused(ValueError):
    """A request that cannot be carried out as it stands: a recipe, a file, a name or an option must change first.

    The message names the value, its place and what to do. It is a ValueError, so that pydantic's validators may raise
    it. The same request is refused again, so nothing tries it a second time.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class RunFailed(RuntimeError):
    """A run that was under way and ended with an error; the message is that error's last line, with its place."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class ClusterFailed(RunFailed):
    """A run that ended because of its machines: workers or nodes were lost too often, or there was no room for them.

    The same run may finish elsewhere or later, so a caller that starts many tries it again.
    """


def one_line(error: BaseException, length: int | None = 200) -> str:
    """Return an error's message in one line, its first `length` characters; its type where it has no message.

    Credentials are removed before it is cut: the first half of a token would not be recognised as one.
    """
    return without_credentials(" ".join(str(error).split()))[:length] or type(error).__name__


def typed_line(error: BaseException, length: int | None = 200) -> str:
    """Return an error's type and message in one line, of at most `length` characters of message."""
    name = type(error).__name__
    return f"{name}: {one_line(error, length)}" if str(error).strip() else name


def did_you_mean(name: str, known: Iterable[str], otherwise: str, n: int = 3, cutoff: float = 0.6) -> str:
    """Return the hint about an unknown name: up to `n` known ones that are like it, or `otherwise` if none is.

    cutoff: how like, from 0 to 1, as in difflib.
    """
    near = difflib.get_close_matches(name, list(known), n, cutoff)
    return f"did you mean {', '.join(near)}?" if near else otherwise


def raised_at(modules: Collection[str], error: BaseException) -> str:
    """Return the last line of these top-level modules that an error came through: ' at FILE:LINE'; '' for none."""
    lines = [
        f" at {frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in modules
    ]
    return "".join(lines[-1:])


def shortened(text: str, length: int = 100) -> str:
    """Return a text in one line without credentials; if it is longer than `length` characters, without its middle."""
    text = without_credentials(text)
    text = " ".join(text[: 4 * length].split()) + (text[-4 * length :] if len(text) > 4 * length else "")
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}[...]{text[-half:]}"

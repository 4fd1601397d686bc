"""The errors that are sentences for people: the command line prints these, and these alone, as one line.

    Exception
    ├── ValueError
    │   └── Refused             what was asked for cannot be done as it stands; says the value, the place and the remedy
    └── RuntimeError
        └── RunFailed           a run, a build or a job ended by something that happened on the way
            └── ClusterFailed   that was the loss of machines, processes or room, and nothing of its own

Every other exception is a fault of the project and keeps its traceback; `assert` is for programmers. Credentials are
cut out of what these two say, wherever it goes.
"""

from kdcore.credentials import without_credentials


class Refused(ValueError):
    """A request that cannot be carried out as it stands: a recipe, a file, a name or an option must change first.

    The message names the value, its place and what to do. It is a ValueError, so that pydantic's validators may raise
    it. The same request is refused again, so nothing tries it a second time.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class RunFailed(RuntimeError):
    """A run that was under way and ended by an error; the message is the last line of what ended it, with its place."""

    def __init__(self, message: str = "") -> None:
        super().__init__(without_credentials(message))


class ClusterFailed(RunFailed):
    """A run that ended for its machines' fault: workers or nodes were lost too often, or there was no room for them.

    The same run may come to its end elsewhere or later, so whoever starts many tries it again.
    """


def shortened(text: str, length: int = 100) -> str:
    """Return a text in one line of at most so many characters, its middle left out where it is longer."""
    text = " ".join(text[: 4 * length].split()) + (text[-4 * length :] if len(text) > 4 * length else "")
    half = length // 2
    return text if len(text) <= length else f"{text[:half]}[...]{text[-half:]}"

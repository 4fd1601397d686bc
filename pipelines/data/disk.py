"""Files of a local or shared disk: open ones, bounded in number; transient errors, told from those of a file."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from kdcore.errors import RunFailed

_FULL_TABLES = (errno.EMFILE, errno.ENFILE)
# Errors of a disk, a mount or this process, not of the file: they say nothing about what the file holds.
_PASSING = frozenset(
    (
        *_FULL_TABLES,
        errno.EIO,
        errno.ESTALE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EINTR,
        errno.EBUSY,
        errno.ENOBUFS,
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ESHUTDOWN,
        errno.EREMOTEIO,
    )
)
_WAITS_SECONDS = (0.05, 0.2, 1.0)  # before the second try and those after it
_Result = TypeVar("_Result")


def is_passing(error: OSError) -> bool:
    """Return whether an error says nothing about the file that was asked for: a later try may succeed."""
    return error.errno in _PASSING


def patiently(path: str, attempt: Callable[[], _Result]) -> _Result:
    """Return an attempt's result, tried a few times while the disk fails; RunFailed, with the path, if it still does.

    Errors of the file itself are raised as they are.
    """
    for wait in _WAITS_SECONDS:
        time.sleep(wait)  # before the first as well: the caller has just failed
        try:
            return attempt()
        except OSError as error:
            if not is_passing(error):
                raise
            last = error
    raise RunFailed(_failing(path, last)) from last


def _failing(path: str, error: OSError) -> str:
    """Return the error text for a file that could not be read through no fault of its own."""
    if error.errno in _FULL_TABLES:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        remedy = f"this process may have {soft:,} files open: raise that (ulimit -n), or end what keeps files open"
    elif error.errno == errno.ENOMEM:
        remedy = "free memory, or take fewer workers or smaller batches"
    else:
        remedy = "repair its disk or mount and start again, or remove the file if only it cannot be read"
    return f"{path} cannot be read ({error.strerror}, in {len(_WAITS_SECONDS) + 1} tries); {remedy}"


class OpenFile:
    """A file that is open as long as this object is referenced: dropping the last reference closes it."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str, flags: int) -> None:
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # a default: at exit modules go first
        if (descriptor := getattr(self, "descriptor", None)) is not None:
            close(descriptor)


class OpenFiles:
    """Files that stay open for their next reads. All those of a process are at most half of what it may open.

    Beyond that, the one that was opened longest ago makes room: it is closed once nothing reads it any more, so a
    reader must hold the file, not only its descriptor. The methods may be called from several threads.
    """

    _all: ClassVar[WeakSet[OpenFiles]] = WeakSet()
    _changing: ClassVar[Any] = Lock()

    def __init__(self) -> None:
        self._files: dict[Hashable, OpenFile] = {}
        with self._changing:
            self._all.add(self)

    def get(self, key: Hashable) -> OpenFile | None:
        """Return a file that is open; None where it is not."""
        return self._files.get(key)

    def open(self, key: Hashable, opened: Callable[[], OpenFile]) -> OpenFile:
        """Return a file; `opened` opens it if it is not open."""
        with self._changing:
            if key not in self._files:
                self._make_room()
                self._files[key] = opened()
            return self._files[key]

    def forget(self, key: Hashable) -> None:
        """Forget a file, so that it is opened again."""
        with self._changing:
            self._files.pop(key, None)

    def __len__(self) -> int:
        return len(self._files)

    def _make_room(self) -> None:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        while soft != resource.RLIM_INFINITY and sum(map(len, self._all)) >= max(1, soft // 2):
            largest = max(self._all, key=len)
            del largest._files[next(iter(largest._files))]

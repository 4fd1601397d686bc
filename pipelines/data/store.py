"""Files of an object store, read in ranges, with retries while the store fails."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Lock

import pyarrow as pa

from kdcore.errors import Refused, RunFailed, one_line
from pipelines.places import Place

IMAGES_READ_AHEAD = 1024  # images to read ahead of those in use: a request takes tens of milliseconds
_REQUESTS = 32  # at a time, of one process
_TRIES = 6
_FIRST_WAIT_SECONDS = 0.2  # before the second try; doubled each time


def changed(name: str) -> Refused:
    """Return the error for an image whose bytes are not those that were indexed."""
    return Refused(f"{name} has changed since it was indexed; restore it, or start again, which indexes it anew")


class StoreFiles:
    """The files of a place; `read` may be called from several threads. keep_open: for few files that are read often."""

    def __init__(self, place: Place, keep_open: bool) -> None:
        self._place = place
        self._keep_open = keep_open
        self._opened: dict[str, pa.NativeFile] = {}
        self._opening = Lock()

    def read(self, name: str, num_bytes: int, start: int, stop: int) -> bytes:
        """Return the bytes from start to stop of a file that had num_bytes when it was indexed.

        Refused where it is another file now; RunFailed where the store does not answer.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                file = self._open(name)
                found = bytes(file.read_at(stop - start, start)) if file.size() == num_bytes else b""
                if len(found) == stop - start:
                    return found
                break
            except FileNotFoundError:
                break
            except OSError as error:
                self._opened.pop(name, None)
                if attempt == _TRIES:
                    reason = one_line(error, length=None)
                    raise RunFailed(
                        f"{self._place.name_of(name)} could not be read in {_TRIES} tries ({reason})"
                    ) from error
                time.sleep(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        raise Refused(
            f"{self._place.name_of(name)} was changed, cut off or removed after it was indexed; restore it, or "
            "start again"
        )

    def _open(self, name: str) -> pa.NativeFile:
        path = f"{self._place.path}/{name}"
        if not self._keep_open:
            return self._place.filesystem.open_input_file(path)
        with self._opening:
            if name not in self._opened:
                self._opened[name] = self._place.filesystem.open_input_file(path)
            return self._opened[name]


@lru_cache(maxsize=1)
def requests() -> ThreadPoolExecutor:
    """Return the threads in which this process waits for its requests."""
    return ThreadPoolExecutor(_REQUESTS, thread_name_prefix="object-store")

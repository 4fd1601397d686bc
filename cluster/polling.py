"""Calling a function periodically, from a thread, while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def polling(look: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call `look` every `seconds` while the block runs, and once more when it has ended.

    An exception in `look` ends the polling, and is raised at the end of the block unless that raised one itself.
    """
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.wait(seconds):
            look()
        look()

    with ThreadPoolExecutor(1, thread_name_prefix="polling") as thread:
        looking = thread.submit(keep_looking)
        try:
            yield
        finally:
            ended.set()
    looking.result()

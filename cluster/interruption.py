"""How a command ends on Ctrl-C, on a second Ctrl-C, and on SIGTERM, which schedulers send.

Ray and Ray Train set handlers of their own, under which a process is silent for half a minute or ends with a dump of
its memory: the previous handlers are restored here.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}  # as in shells: 128 plus the signal's number


class Terminated(BaseException):
    """SIGTERM came: everything held is released, as on Ctrl-C. The message says what was saved."""


@contextmanager
def ending_on_signals(remark: str = "") -> Iterator[None]:
    """Raise KeyboardInterrupt or Terminated in the main thread at the first signal; end the process at the second.

    remark: appended to the message that is printed then.
    """
    if not in_main_thread():
        yield
        return
    seen: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if seen:
            os.write(2, f"\nstillhouse: ended at once{remark}\n".encode())
            os._exit(STATUS[signal.Signals(number)])
        seen.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated("terminated")

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the signal handlers after the body, which starts something that sets its own."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    if in_main_thread():
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(function: Callable[[], Result]) -> Future[Result]:
    """Call a function in a daemon thread, which leaves the main thread free to receive signals."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="run", daemon=True).start()
    return future


def in_words(interruption: BaseException) -> str:
    """Return what ended a command, in words, with what was done before it ended."""
    return str(interruption) or "interrupted"


def in_main_thread() -> bool:
    """Return whether signals are handled in this thread."""
    return threading.current_thread() is threading.main_thread()

"""When a run is opened in its trackers, by a thread of its driver.

MLflow takes seconds of CPU time to import, which need not delay the first step. So a run with the store of its own
output folder is opened when its log has something to deliver; any other store may be away, or refuse the run, and is
asked before it trains.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from threading import Lock

from kdcore.errors import RunFailed


class NotOpened(RunFailed):
    """A run that its driver could not open in its trackers. The driver knows why, and says that instead."""


class Opening:
    """A run's entry in its trackers, made when it is first wanted.

    make: opens the run, and returns its id in MLflow; thread: where that is done; is_first: whether that comes before
    the first step.
    """

    def __init__(self, make: Callable[[], str], thread: Executor, is_first: bool) -> None:
        self.make, self.thread, self.is_first, self.lock = make, thread, is_first, Lock()
        self.future: Future[str] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether it has been wanted."""
        return self.future is not None

    def begin(self) -> Future[str]:
        """Have the run opened, once, without waiting for it."""
        with self.lock:
            self.future = self.future or self.thread.submit(self.make)
        return self.future

    def wait(self) -> None:
        """Have the run opened, and wait for it. NotOpened where that has failed."""
        if error := self.begin().exception():
            raise NotOpened(str(error)) from error

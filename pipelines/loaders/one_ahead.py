"""Working one step ahead: the next item of a generator is computed while the one before it is in use."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class OneAhead(Generic[Item]):
    """The items of a generator, each computed in a thread of its own while the one before it is in use.

    The thread works only where an item is asked for, and ends with this object: it need not be closed. (A generator
    that closed it at its own end might do so in the midst of anything, as garbage, and wait there for ever.)
    """

    def __init__(self, items: Generator[Item]) -> None:
        self._items = items
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="one-ahead")
        self._next: Future[Item | None] | None = None

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        """Return the next item, or raise the error that came instead, and begin with the one after it."""
        item = (self._next or self._begin()).result()
        if item is None:
            raise StopIteration
        self._next = self._begin()
        return item

    def close(self) -> None:
        """End the generator at once, or when the item that is being computed is there."""
        self._thread.shutdown(cancel_futures=True)
        self._items.close()

    def _begin(self) -> Future[Item | None]:
        return self._thread.submit(next, self._items, None)

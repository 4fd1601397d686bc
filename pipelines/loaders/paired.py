"""One batch from two loaders: the student's images, and the same views in the size that its teacher sees."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import tee
from threading import Lock

from kdcore.batch import Batch
from pipelines.loaders.base import Loader, Request


@dataclass(frozen=True)
class PairedLoader:
    """Answers each request with both loaders. student, teacher: of the same images, under plans of one seed."""

    student: Loader
    teacher: Loader

    @property
    def max_batch(self) -> int:
        """The largest request."""
        return min(self.student.max_batch, self.teacher.max_batch)

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield a batch for every request, in order, with `teacher_images`."""
        lock = Lock()
        mine, theirs = (_one_at_a_time(branch, lock) for branch in tee(requests))
        for batch, larger in zip(self.student.load(mine), self.teacher.load(theirs), strict=True):
            yield replace(batch, teacher_images=larger.images)


def _one_at_a_time(requests: Iterator[Request], lock: Lock) -> Iterator[Request]:
    """Yield the requests, each taken under the lock: both loaders take them, in threads of their own."""
    while True:
        with lock:
            request = next(requests, None)
        if request is None:
            return
        yield request

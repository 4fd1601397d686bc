"""Reading ahead: the encoded images of the next batches, fetched in threads while earlier batches are in use.

What is read next is known, as the order is a pure function: nothing is read in vain, and there is no shuffle buffer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipelines.data.images import Encoded
from pipelines.data.source import Source
from pipelines.loaders.base import Job

_Reading = tuple[Job, list[Future[list[Encoded]]]]


class ReadAhead:
    """Jobs with the encoded images of their samples. num_threads: that read; depth: jobs read ahead, at least."""

    def __init__(self, source: Source, num_threads: int, depth: int) -> None:
        self._source = source
        self._num_threads = num_threads
        self._depth = depth
        self._images = source.ahead
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="read-ahead")

    def __call__(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, list[Encoded]]]:
        """Yield each job with its images, in order; Refused, with its name, for an image that cannot be read."""
        reading: deque[_Reading] = deque()
        num_images = 0  # that are being read, or waiting
        try:
            for job in jobs:
                parts = np.array_split(job.views.sample_ids, self._num_threads)
                reading.append((job, [self._threads.submit(self._source.read, part) for part in parts if len(part)]))
                num_images += len(job.views.sample_ids)
                if len(reading) > self._depth and num_images > self._images:
                    num_images -= len(reading[0][0].views.sample_ids)
                    yield _finished(reading.popleft())
            while reading:
                yield _finished(reading.popleft())
        finally:
            for _, futures in reading:
                for future in futures:
                    future.cancel()


def _finished(reading: _Reading) -> tuple[Job, list[Encoded]]:
    job, futures = reading
    return job, [content for future in futures for content in future.result()]

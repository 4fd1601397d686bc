"""What every loader does: requests for rows of a view in, batches out, in the order asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import Batch
from pipelines.data.source import Source
from pipelines.loaders.one_ahead import OneAhead
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan, Views

BLOCK = 32  # requests whose views are drawn at once: numpy's cost is per call


@dataclass(frozen=True)
class Request:
    """The rows of one batch: any sample ids [B], in any order, each in a view.

    view: one number for all rows, or one for each [B]; epoch: epochs done before, passed through.
    """

    view: int | NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    epoch: float = 0.0

    @property
    def views(self) -> NDArray[np.int64]:
        """The view number of each row: [B]."""
        return np.broadcast_to(np.asarray(self.view, dtype=np.int64), np.shape(self.sample_ids))


def requests_of(ids: NDArray[np.int64], size: int, view: int = 0) -> Iterator[Request]:
    """Yield requests for samples in a view, in their order: for `size` of them each, the last for those that remain."""
    for start in range(0, len(ids), size):
        yield Request(view, ids[start : start + size])


@dataclass(frozen=True)
class Job:
    """A request with all that decoding needs.

    views: N of them, of which the first B are asked for and the others are partners that are not among those;
    partner_rows [B]: where among the N each partner is.
    """

    request: Request
    views: Views
    partner_rows: NDArray[np.int64]


class Loader(ABC):
    """Pictures of a data set as batches on a device. One loader serves any number of `load` calls, one at a time.

    source: the data; plan: its views; finish: from pictures to batches; max_batch: the largest request.
    """

    def __init__(self, source: Source, plan: ViewPlan, finish: Finish, max_batch: int) -> None:
        assert len(source) == plan.num_samples, "the plan is made for this source"
        self.source = source
        self.plan = plan
        self.finish = finish
        self.device = finish.device
        self.max_batch = max_batch
        # Where views are mixed, every partner of a request may lie outside it.
        self.max_pictures = max_batch * (2 if plan.policy.mixes else 1)
        self._latest: OneAhead[Batch] | Generator[Batch] | None = None  # the load() that is served

    @abstractmethod
    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        """Yield each job with its pictures: cropped, resized, flipped, uint8 [N,H,W,3] on the device."""

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield a batch for every request, in order; starting another `load` ends this one.

        On a CPU a batch is made while the one before it is in use. On a GPU the kernels that finish it are launched by
        the thread that takes it: in the order of its stream, and never while it captures a graph.

        A picture's pixels depend only on its view and sample id. Refused names an image that cannot be decoded.
        """
        if self._latest is not None:
            self._latest.close()
        batches = self._batches(requests)
        this = self._latest = OneAhead(batches) if self.device.type == "cpu" else batches
        for batch in this:
            yield batch
            assert self._latest is this, "another load() has taken this loader over"

    def _batches(self, requests: Iterable[Request]) -> Generator[Batch]:
        """Yield a batch for every request, in order."""
        for job, images in self.decode(self.jobs(requests)):
            ids = job.views.sample_ids
            labels = torch.from_numpy(self.source.targets(ids)).to(self.device, non_blocking=True)
            pictures, labels = self.finish.at(job.views)(images, job.views, job.partner_rows, labels)
            shown = np.stack((ids, job.views.views))[:, : len(pictures)]
            sample_ids, views = torch.from_numpy(shown).to(self.device, non_blocking=True)
            yield Batch(
                images=pictures,
                labels=labels,
                sample_ids=sample_ids,
                views=views,
                epoch=job.request.epoch,
            )

    def jobs(self, requests: Iterable[Request]) -> Iterator[Job]:
        """Yield the requests with their views, which are drawn ahead and for many requests at once."""
        for block in OneAhead(self._draw(requests)):
            yield from block

    def _draw(self, requests: Iterable[Request]) -> Generator[list[Job]]:
        """Yield the requests with their views in blocks, the partners that a request lacks appended to its own."""
        for _, of_one_size in groupby(requests, key=lambda request: self.plan.policy.at(request.views).size):
            while block := list(islice(of_one_size, BLOCK)):
                rows = [self.rows(request) for request in block]
                views = self.views(*(np.concatenate([row[column] for row in rows]) for column in (0, 1)))
                ends = np.cumsum([len(ids) for _, ids, _ in rows])
                yield [
                    Job(request, views[end - len(ids) : end], partner_rows)
                    for request, (_, ids, partner_rows), end in zip(block, rows, ends, strict=True)
                ]

    def rows(self, request: Request) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return the view numbers [N] and sample ids [N] of a request, and `Job.partner_rows` [B].

        The partners that the request lacks are appended to what it asks for.
        """
        ids, views = np.asarray(request.sample_ids, dtype=np.int64), request.views
        assert 0 < len(ids) <= self.max_batch, f"a request has 1 to {self.max_batch} samples, not {len(ids)}"
        if not self.plan.policy.mixes:
            return views, ids, np.arange(len(ids))
        # A row is a sample in a view; as one number, so that rows can be looked for.
        numbers, of_row = np.unique(views, return_inverse=True)
        asked = of_row * len(self.source) + ids
        wanted = of_row * len(self.source) + self.plan.partner(views, ids)
        rows = np.concatenate((asked, np.setdiff1d(wanted, asked)))
        in_order = np.argsort(rows, kind="stable")
        partner_rows = in_order[np.searchsorted(rows, wanted, sorter=in_order)]
        return numbers[rows // len(self.source)], rows % len(self.source), partner_rows

    def views(self, views: NDArray[np.int64], ids: NDArray[np.int64]) -> Views:
        """Return the samples in their views."""
        return self.plan.views(views, ids, self.source.heights[ids], self.source.widths[ids])

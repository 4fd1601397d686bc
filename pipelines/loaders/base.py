"""What every loader does: requests for rows of a view in, batches out, in the order asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import Batch
from pipelines.data.source import Source
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan, Views


@dataclass(frozen=True)
class Request:
    """The samples of one batch: any ids, in any order, of one view. epoch: epochs done before, handed through."""

    view: int
    sample_ids: NDArray[np.int64]
    epoch: float = 0.0


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
        self._latest: object = None  # which load() is served

    @abstractmethod
    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        """Yield each job with its pictures: cropped, resized, flipped, uint8 [N,H,W,3] on the device."""

    def load(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """Yield a batch for every request, in order; starting another `load` ends this one.

        A picture's pixels depend on its view and sample id alone. Refused names an image that cannot be decoded.
        """
        this = self._latest = object()
        for job, images in self.decode(self.jobs(requests)):
            ids = job.views.sample_ids
            labels = torch.from_numpy(self.source.labels[ids].astype(np.int64)).to(self.device, non_blocking=True)
            pictures, labels = self.finish(images, job.views, job.partner_rows, labels)
            yield Batch(
                images=pictures,
                labels=labels,
                sample_ids=torch.from_numpy(ids[: len(pictures)]).to(self.device, non_blocking=True),
                view=job.request.view,
                epoch=job.request.epoch,
            )
            assert self._latest is this, "another load() has taken this loader over"

    def jobs(self, requests: Iterable[Request]) -> Iterator[Job]:
        """Return the requests with their views, one as each is taken."""
        return map(self.prepare, requests)

    def prepare(self, request: Request) -> Job:
        """Return a request with its views, those of the partners that it lacks appended."""
        ids, partner_rows = self.rows(request)
        return Job(request, self.views(request.view, ids), partner_rows)

    def rows(self, request: Request) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (the sample ids [N] of a request, the partners that it lacks appended; `Job.partner_rows` [B])."""
        ids = np.asarray(request.sample_ids, dtype=np.int64)
        assert 0 < len(ids) <= self.max_batch, f"a request has 1 to {self.max_batch} samples, not {len(ids)}"
        if not self.plan.policy.mixes:
            return ids, np.arange(len(ids))
        partners = self.plan.partner(request.view, ids)
        rows = np.concatenate((ids, np.setdiff1d(partners, ids)))
        by_id = np.argsort(rows, kind="stable")
        return rows, by_id[np.searchsorted(rows, partners, sorter=by_id)]

    def views(self, view: int, ids: NDArray[np.int64]) -> Views:
        """Return the views of these samples."""
        return self.plan.views(view, ids, self.source.heights[ids], self.source.widths[ids])

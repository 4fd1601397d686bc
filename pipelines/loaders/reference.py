"""The same views with only Pillow: what the DALI loader is tested against, and a loader for machines without DALI."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.data.source import Source
from pipelines.loaders.base import Job, Loader
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan, Views

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ReferenceLoader(Loader):
    """Decodes in threads, one batch at a time, nothing ahead."""

    def __init__(self, source: Source, plan: ViewPlan, finish: Finish, max_batch: int, *, num_threads: int) -> None:
        super().__init__(source, plan, finish, max_batch)
        self._threads = ThreadPoolExecutor(num_threads)

    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        """Yield each job with its pictures."""
        for job in jobs:
            rows = range(len(job.views.sample_ids))
            pictures = list(self._threads.map(self._picture, repeat(job.views), rows))
            yield job, torch.from_numpy(np.stack(pictures)).to(self.device, non_blocking=True)

    def _picture(self, views: Views, row: int) -> NDArray[np.uint8]:
        """Return the picture [H,W,3] of one view."""
        policy, sample_id = self.plan.policy.at(views.views), int(views.sample_ids[row])
        (y, x, h, w), (height, width), (top, left) = views.window[row], views.resize[row], views.offset[row]
        (content,) = self.source.read(views.sample_ids[row : row + 1])
        picture = self.source.decode(sample_id, content)
        picture = picture.crop((x, y, x + w, y + h)).resize((width, height), FILTERS[policy.interpolation])
        picture = picture.crop((left, top, left + policy.width, top + policy.height))  # black outside
        pixels = np.asarray(picture)
        return pixels[:, ::-1] if views.flip[row] else pixels

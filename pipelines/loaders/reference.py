"""The same views with Pillow alone: what the DALI loader is tested against, and a loader for machines without DALI."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.data.folder import decode_file
from pipelines.data.index import ImageIndex
from pipelines.loaders.base import Job, Loader
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan, Views

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ReferenceLoader(Loader):
    """Decodes in threads, one batch at a time, nothing ahead."""

    def __init__(self, index: ImageIndex, plan: ViewPlan, finish: Finish, max_batch: int, *, num_threads: int) -> None:
        super().__init__(index, plan, finish, max_batch)
        self._threads = ThreadPoolExecutor(num_threads)

    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        for job in jobs:
            paths = self.index.paths(job.views.sample_ids)
            pictures = list(self._threads.map(self._picture, repeat(job.views), count(), paths))
            yield job, torch.from_numpy(np.stack(pictures)).to(self.device, non_blocking=True)

    def _picture(self, views: Views, row: int, path: str) -> NDArray[np.uint8]:
        policy, sample_id = self.plan.policy, views.sample_ids[row]
        (y, x, h, w), (height, width), (top, left) = views.window[row], views.resize[row], views.offset[row]
        picture = decode_file(Path(path), self.index.heights[sample_id], self.index.widths[sample_id])
        picture = picture.crop((x, y, x + w, y + h)).resize((width, height), _FILTERS[policy.interpolation])
        picture = picture.crop((left, top, left + policy.width, top + policy.height))  # black outside
        pixels = np.asarray(picture)
        return pixels[:, ::-1] if views.flip[row] else pixels

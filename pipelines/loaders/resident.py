"""Small images without decoding: the data set lies in the device's memory, and a batch is one gather from it.

For images of one size that every view brings to the same size: the padded crop of the CIFAR recipes, or the whole
picture. They are kept there in that size, so that a picture is decoded and resized once. Their pixels are those of the
reference loader, bit for bit. Colours, mixing and erasing are `pipelines.loaders.render`'s, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.errors import Refused
from pipelines.data.source import Source
from pipelines.loaders.base import Job, Loader
from pipelines.loaders.reference import FILTERS
from pipelines.loaders.render import Finish
from pipelines.views.plan import ViewPlan

MEMINFO = Path("/proc/meminfo")
_REMEDY = "take data.loader=dali (or reference)"
_READ_AT_ONCE = 256  # images of one read

# {(data, device, height, width, interpolation): pictures}, shared by the loaders of one process, such as those of
# several runs side by side.
_resident: WeakValueDictionary[tuple[str, torch.device, int, int, str], Tensor] = WeakValueDictionary()


class ResidentLoader(Loader):
    """Batches gathered on the device. Refused for data of several sizes, or views that are resized differently."""

    def __init__(self, source: Source, plan: ViewPlan, finish: Finish, max_batch: int, *, num_threads: int) -> None:
        super().__init__(source, plan, finish, max_batch)
        height, width = _shown_size(plan, *_common_size(source))
        self._frame = height + 2, width + 2
        interpolation = plan.policy.interpolation
        key = (source.fingerprint, self.device, height, width, interpolation)
        pictures = _resident.get(key)
        if pictures is None:
            pictures = resident_pictures(source, self.device, num_threads, height, width, interpolation)
            _resident[key] = pictures
        self._pictures = pictures
        self._rows = torch.arange(plan.policy.height, device=self.device)
        self._columns = torch.arange(plan.policy.width, device=self.device)

    def decode(self, jobs: Iterator[Job]) -> Iterator[tuple[Job, Tensor]]:
        """Yield each job with its pictures."""
        height, width = self._frame
        for job in jobs:
            views = job.views
            numbers = np.column_stack((views.sample_ids, views.offset + 1, views.flip))
            sample, top, left, flip = torch.from_numpy(numbers).to(self.device, non_blocking=True)[..., None].unbind(1)
            # Everything outside the picture is its black frame.
            rows = (top + self._rows).clamp_(0, height - 1)
            columns = torch.where(flip.bool(), self._columns.flip(0), self._columns)
            columns = (left + columns).clamp_(0, width - 1)
            pixels = ((sample * height + rows) * width)[:, :, None] + columns[:, None, :]
            yield job, self._pictures[pixels]


def resident_pictures(
    source: Source, device: torch.device, num_threads: int, height: int, width: int, interpolation: str
) -> Tensor:
    """Return every picture of H x W in a frame of one black pixel, on the device: uint8 [N * (H + 2) * (W + 2), 3].

    Refused where they do not fit, or where one cannot be decoded.
    """
    num_bytes = len(source) * (height + 2) * (width + 2) * 3
    if num_bytes > _free_bytes(device):
        raise Refused(
            f"the {len(source):,} images of {source.root} take {num_bytes / 2**30:.1f} GiB, but {device} has "
            f"{_free_bytes(device) / 2**30:.1f} GiB free; {_REMEDY}"
        )
    framed = np.zeros((len(source), height + 2, width + 2, 3), dtype=np.uint8)

    def decode(start: int) -> None:
        ids = np.arange(start, min(start + _READ_AT_ONCE, len(source)))
        for sample_id, content in zip(ids.tolist(), source.read(ids), strict=True):
            picture = source.decode(sample_id, content)
            if picture.size != (width, height):
                picture = picture.resize((width, height), FILTERS[interpolation])
            framed[sample_id, 1:-1, 1:-1] = np.asarray(picture)

    with ThreadPoolExecutor(num_threads) as threads:
        for _ in threads.map(decode, range(0, len(source), _READ_AT_ONCE)):
            pass
    return torch.from_numpy(framed.reshape(-1, 3)).to(device)


def _common_size(source: Source) -> tuple[int, int]:
    """Return (height, width) of every image; Refused where they differ."""
    height, width = int(source.heights[0]), int(source.widths[0])
    other = np.flatnonzero((source.heights != height) | (source.widths != width))
    if other.size:
        first = f"{source.heights[other[0]]}x{source.widths[other[0]]}"
        raise Refused(
            f"loader 'resident' needs images of one size, but {source.root} has {height}x{width} and {first}; {_REMEDY}"
        )
    return height, width


def _shown_size(plan: ViewPlan, height: int, width: int) -> tuple[int, int]:
    """Return (height, width) that every view brings a picture to. Refused where views differ in that."""
    if plan.policy.sizes:
        raise Refused(f"loader 'resident' shows images of one size, but views.sizes names others; {_REMEDY}")
    if plan.policy.crop == "resized":
        raise Refused(
            "loader 'resident' does not resize views one by one, but views.crop=resized takes another part of an "
            f"image for each; {_REMEDY}, or views.crop=padded"
        )
    size: NDArray[np.int32] = np.array([height, width], dtype=np.int32)
    zero: NDArray[np.int64] = np.zeros(1, dtype=np.int64)
    resize = plan.views(0, zero, size[:1], size[1:]).resize[0]
    return int(resize[0]), int(resize[1])


def _free_bytes(device: torch.device) -> int:
    """Return the bytes of memory that the device has free; for a CPU, with what the page cache of files gives back."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024

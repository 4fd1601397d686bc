"""The rendering of pictures one after the other: used on a CPU, where memory counts.

What passes between two steps stays in the processor's cache, only the batch itself is written to memory, and that is
memory which earlier batches have used. Steps that would not change a picture are skipped. On a GPU
`pipelines.loaders.render_batch` gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.buffers import Buffers
from pipelines.loaders.pillow_operations import PillowOperator
from pipelines.views.plan import Views
from pipelines.views.policy import ViewPolicy

_CACHED_VALUES = 300_000  # about as many float32 values are worked on at once: two pictures of 224 x 224

_KEPT = 4  # free batches at most: one in training, one that is prepared, and two between

Rows = NDArray[np.int64]


class PictureRenderer:
    """Renders pictures a few at once.

    mean, std [3W]: of a row's values in [0, 1]; noise [H+,W+,3]: what erased boxes are filled with, None for the mean.
    """

    def __init__(self, policy: ViewPolicy, mean: Tensor, std: Tensor, noise: Tensor | None) -> None:
        self.policy, self.mean, self.std = policy, mean, std
        self.noise = None if noise is None else noise.flatten(1)
        self.operator: PillowOperator | None = None
        if policy.augment is not None:
            self.operator = PillowOperator(policy.fill, bicubic=policy.interpolation == "bicubic")
        height, width = policy.height, policy.width
        self._at_once = max(2 if policy.mixes else 1, _CACHED_VALUES // (3 * height * width))
        self._batches = Buffers(_KEPT)
        most = self._at_once * (2 if policy.mixes else 1)  # every partner may be missing
        self._pixels = torch.empty(most, height, width, 3, dtype=torch.uint8)
        self._developed = torch.empty(most if policy.mixes else 0, height, 3 * width)
        self._term = torch.empty(height, 3 * width)
        self._planes = torch.empty(7 if policy.jitters else 0, most, height * width)

    def __call__(self, images: Tensor, views: Views, partner_rows: Rows) -> Tensor:
        """Return a network's input: uint8 [N,H,W,3] of N views -> float32 [B,H,3W]; see `Finish`."""
        out = self._batch(len(partner_rows))
        if not self.policy.mixes:
            for start in range(0, len(out), self._at_once):
                rows = np.arange(start, min(start + self._at_once, len(out)))
                self._develop(images, views, rows, out[start : rows[-1] + 1])
        else:
            for rows in self._together(partner_rows):
                self._mix(images, views, rows, partner_rows[rows], out)
        if not self.policy.erase_first:
            self._erase(out, views, np.arange(len(out)))
        return out

    def _batch(self, num: int) -> Tensor:
        """Return room for `num` pictures: float32 [num,H,3W], whose memory is reused when no tensor shares it."""
        shape = num, self.policy.height, 3 * self.policy.width
        return torch.from_numpy(self._batches.take(4 * prod(shape))).view(torch.float32).view(shape)

    def _together(self, partner_rows: Rows) -> Iterator[Rows]:
        """Yield the rows of a batch in parts, partners next to one another."""
        own = np.arange(len(partner_rows))
        order = np.argsort(np.minimum(own, partner_rows), kind="stable")
        for start in range(0, len(order), self._at_once):
            yield order[start : start + self._at_once]

    def _develop(self, images: Tensor, views: Views, rows: Rows, out: Tensor) -> None:
        """Write the pictures of some rows after operations, colours and normalisation: uint8 [N,H,W,3] -> [.,H,3W]."""
        pixels = self._operate(images, views, rows)
        if views.colour is None:
            out.copy_(pixels.flatten(2)).div_(255)
        else:
            self._change_colour(pixels, torch.from_numpy(views.colour[rows]), out)
        out.sub_(self.mean).div_(self.std)

    def _operate(self, images: Tensor, views: Views, rows: Rows) -> Tensor:
        """Return the pictures of some rows after their operations: uint8 [N,H,W,3] -> [.,H,W,3]."""
        if self.operator is None and np.all(np.diff(rows) == 1):
            return images[rows[0] : rows[-1] + 1]
        pixels = self._pixels[: len(rows)]
        for row, changed in zip(rows.tolist(), pixels.numpy(), strict=True):
            image = images[row].numpy()
            if self.operator is not None:
                assert views.operations is not None, "drawn where the policy has a policy of operations"
                assert views.arguments is not None, "drawn with the operations"
                image = self.operator(image, views.operations[row], views.arguments[row])
            changed[...] = image
        return pixels

    def _change_colour(self, pixels: Tensor, colour: Tensor, out: Tensor) -> None:
        """Write clip(matrix x + offset, 0, 1) of pixels in [0, 1]: uint8 [.,H,W,3], [.,3,4] -> float32 [.,H,3W].

        Colour by colour, each product and each sum rounded by itself.
        """
        planes, changed = self._planes[:6, : len(pixels)].unflatten(0, (2, 3))
        term = self._planes[6, : len(pixels)]
        planes.copy_(pixels.flatten(1, 2).permute(2, 0, 1)).div_(255)
        for total, weights in zip(changed, colour.unbind(dim=1), strict=True):
            torch.mul(planes[0], weights[:, :1], out=total)
            for number in (1, 2):
                total.add_(torch.mul(planes[number], weights[:, number, None], out=term))
            total.add_(weights[:, 3:]).clamp_(0, 1)
        out.unflatten(2, (-1, 3)).flatten(1, 2).copy_(changed.permute(1, 2, 0))

    def _mix(self, images: Tensor, views: Views, rows: Rows, partners: Rows, out: Tensor) -> None:
        """Write the mixtures of some rows with their partners' pictures: uint8 [N,H,W,3] -> [B,H,3W]."""
        shares, boxes = views.mix_lambda[rows], views.mix_box[rows]
        cut = boxes[:, 2] > 0
        needed = np.concatenate((rows, np.setdiff1d(partners[cut | (shares < 1)], rows)))
        pictures = self._developed[: len(needed)]
        self._develop(images, views, needed, pictures)
        if self.policy.erase_first:
            self._erase(pictures, views, needed)
        place = dict(zip(needed.tolist(), pictures, strict=True))
        for row, partner, share, box in zip(rows.tolist(), partners.tolist(), shares, boxes.tolist(), strict=True):
            if box[2]:
                out[row].copy_(place[row])
                _box(out[row], box).copy_(_box(place[partner], box))
            elif share < 1:
                torch.mul(place[row], float(share), out=out[row])
                out[row].add_(torch.mul(place[partner], float(1 - share), out=self._term))
            else:
                out[row].copy_(place[row])

    def _erase(self, pictures: Tensor, views: Views, rows: Rows) -> None:
        """Fill, in place, the boxes of the pictures [.,H,3W] of these rows, where they have one."""
        if views.erase is None:
            return
        for number in np.flatnonzero(views.erase[rows, 2]).tolist():
            row = rows[number]
            y, x, h, w = box = views.erase[row].tolist()
            erased = _box(pictures[number], box)
            if self.noise is None:
                erased.zero_()
            else:
                assert views.noise_offset is not None, "a view with boxes says where their noise is"
                dy, dx = views.noise_offset[row].tolist()
                erased.copy_(_box(self.noise, [y + dy, x + dx, h, w]))


def _box(picture: Tensor, box: list[int]) -> Tensor:
    """Return the part of a picture [H,3W] in a box (y, x, h, w)."""
    y, x, h, w = box
    return picture[y : y + h, 3 * x : 3 * (x + w)]

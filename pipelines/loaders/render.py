"""From decoded pictures to the batch a network sees: operations, colours, normalisation, mixing, erasing.

One implementation in torch, on whatever device, behind every loader. Each step works on one picture, or one pixel of
two, at a time, so that a sample's pixels do not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import soft_labels
from kdcore.errors import Refused
from pipelines.loaders.operations import Operator
from pipelines.views.draws import NOISE_SLACK, Stream
from pipelines.views.philox import words
from pipelines.views.plan import Views
from pipelines.views.policy import ViewPolicy

# On a CPU work is done in small parts, so that what passes between steps stays in its cache.
_CPU_PART = 4  # pictures
_CPU_VALUES = 40_000  # about as many values of a picture where places are computed in float64


class Finish:
    """What is the same for every batch of a run: the policy, the normalisation, the noise.

    mean, std: per channel, of pixels in [0, 1]; seed: the plan's; channels_last: how batches lie in memory. Where sizes
    change, there is one of each size; see `at`.
    """

    def __init__(
        self,
        policy: ViewPolicy,
        seed: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_classes: int,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise Refused(f"mean={tuple(mean)} and std={tuple(std)}: give three numbers each, std above 0")
        self.policy = policy
        self._of_size = cache(
            lambda policy: Finish(
                policy,
                seed,
                mean=mean,
                std=std,
                num_classes=num_classes,
                device=device,
                channels_last=channels_last,
            )
        )
        self.num_classes = num_classes
        self.channels_last = channels_last
        self.device = device
        # A picture's rows are handled as 3 W values: a last dimension of 3 would keep a CPU from vectorising.
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).repeat(policy.width)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).repeat(policy.width)
        noisy = policy.erase_probability > 0 and policy.erase_fill == "noise"
        self.operator = _operator(policy, device)
        self.noise = self._put(noise_field(seed, policy.height, policy.width)) if noisy else None

    def __call__(
        self, images: Tensor, views: Views, partner_rows: NDArray[np.int64], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (what a network sees of uint8 pictures [N,H,W,3] of N views, its labels).

        What it sees is float32 [B,3,H,W], normalised. The first B of the N are asked for; the others are
        there as partners. partner_rows [B]: where among the N each partner is; labels [N] int64. In this order: the
        view's operations; its colour change, clipped to [0, 1]; normalisation; mixing with the partner's picture of the
        same stage; erasing of the mixture (or, by erase_first, of the two pictures before). Labels: [B] int64, or,
        where the policy mixes, [B,K] float32 with the shares of the two pictures (erasing changes no label).
        """
        num, policy = len(partner_rows), self.policy
        pictures = self._develop(images, views)
        if policy.erase_first:
            self._erase(pictures, views)
        if policy.mixes:
            partners, share = self._put(partner_rows), self._put(views.mix_lambda[:num])
            pictures = self._mix(pictures, partners, share, self._put(views.mix_box[:num]))
            labels = mix_labels(soft_labels(labels, self.num_classes), partners, share)
        if views.erase is not None and not policy.erase_first:
            self._erase(pictures, views)
        pictures = pictures.view(-1, policy.height, policy.width, 3).permute(0, 3, 1, 2)
        return pictures if self.channels_last else pictures.contiguous(), labels

    def at(self, views: Views) -> Finish:
        """Return what finishes pictures of the size that these views have."""
        policy = self.policy.at(views.views)
        return self if policy is self.policy else self._of_size(policy)

    def _develop(self, images: Tensor, views: Views) -> Tensor:
        """Apply operations, colours and normalisation: uint8 [N,H,W,3] -> float32 [N,H,3W]."""
        if self.operator is not None:
            assert views.operations is not None, "drawn where the policy has a policy of operations"
            assert views.arguments is not None, "drawn with the operations"
            images = self.operator(images, views.operations, views.arguments)
        colour = None if views.colour is None else self._put(views.colour)
        out = torch.empty(images.flatten(2).shape, dtype=torch.float32, device=self.device)
        for part in self._parts(len(images)):
            pixels = images[part].float().div_(255)
            if colour is not None:
                change_colour(pixels, colour[part])
            torch.div(pixels.flatten(2).sub_(self.mean), self.std, out=out[part])
        return out

    def _mix(self, pictures: Tensor, partners: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
        """Return `mix` with the partners' rows of pictures: [N,H,3W] -> [B,H,3W]."""
        out = torch.empty_like(pictures[: len(partners)])
        for part in self._parts(len(partners)):
            out[part] = mix(pictures[part], pictures[partners[part]], share[part], boxes[part])
        return out

    def _erase(self, pictures: Tensor, views: Views) -> None:
        """Fill the boxes of those pictures [B,H,3W] that have one, in place: with 0, or with a window of the noise."""
        assert views.erase is not None, "asked for where boxes were drawn"
        rows = np.flatnonzero(views.erase[: len(pictures), 2])
        chosen = self._put(rows)
        fill = torch.zeros((), device=self.device) if self.noise is None else self._noise(views, rows)
        boxes = self._put(views.erase[rows])
        pictures[chosen] = torch.where(inside(boxes, *pictures.shape[1:]), fill, pictures[chosen])

    def _noise(self, views: Views, rows: NDArray[np.int64]) -> Tensor:
        """Return the windows of the noise field that the views in the given rows take: [.,H,3W]."""
        assert self.noise is not None, "there is a field where the policy fills with noise"
        assert views.noise_offset is not None, "a view with boxes says where their noise is"
        offset = self._put(views.noise_offset[rows].astype(np.int64))
        y = offset[:, 0, None] + torch.arange(self.policy.height, device=self.device)
        x = offset[:, 1, None] + torch.arange(self.policy.width, device=self.device)
        return self.noise[y[:, :, None], x[:, None, :]].flatten(2)

    def _parts(self, num: int) -> list[slice]:
        """Return the slices of a batch that are worked on at once: all of it on a GPU, small parts on a CPU."""
        step = _CPU_PART if self.device.type == "cpu" else num
        return [slice(start, min(start + step, num)) for start in range(0, num, step)]

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def _operator(policy: ViewPolicy, device: torch.device) -> Operator | None:
    """Return what applies the operations of the policy, None where it has none."""
    if policy.augment is None:
        return None
    on_cpu = device.type == "cpu"
    return Operator(
        policy.auto_augment_fill or policy.augment.fill,
        bicubic=policy.interpolation == "bicubic",
        part=1 if on_cpu else None,
        strip=max(1, _CPU_VALUES // (3 * policy.width)) if on_cpu else None,
    )


def change_colour(pixels: Tensor, colour: Tensor) -> None:
    """Set every pixel to clip(matrix x + offset, 0, 1), in place: pixels [N,H,W,3] in [0, 1], colour [N,3,4].

    Written out by channel: a matrix product's rounding may depend on the size of the batch.
    """
    planes = pixels.permute(3, 0, 1, 2).contiguous()
    for channel in range(3):
        weights = colour[:, channel, :, None, None].unbind(dim=1)  # four of [N,1,1]
        total = planes[0] * weights[0]
        total.add_(planes[1] * weights[1]).add_(planes[2] * weights[2]).add_(weights[3])
        pixels[..., channel] = total.clamp_(0, 1)


def inside(boxes: Tensor, height: int, row_values: int) -> Tensor:
    """Return which values, 3 a pixel, lie in their picture's box (y, x, h, w): [B,4] -> bool [B,height,row_values]."""
    y, x, h, w = boxes[:, :, None].unbind(dim=1)  # each [B,1]
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(row_values, device=boxes.device) // 3
    in_rows = (rows >= y) & (rows < y + h)
    in_columns = (columns >= x) & (columns < x + w)
    return in_rows[:, :, None] & in_columns[:, None, :]


def mix(pictures: Tensor, partners: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """Return share * picture + (1 - share) * partner; where there is a box, the partner inside and the picture outside.

    pictures, partners [B,H,3W]; share [B]; boxes [B,4], area 0 for none.
    """
    has_box = (boxes[:, 2] * boxes[:, 3] > 0)[:, None, None]
    blend = torch.where(has_box, 1.0, share[:, None, None])
    blended = blend * pictures + (1 - blend) * partners
    return torch.where(inside(boxes, *pictures.shape[1:]), partners, blended)


def mix_labels(labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return share * own + (1 - share) * partner's: labels [N,K], partners [B] rows of it, share [B] -> [B,K]."""
    share = share[:, None]
    return share * labels[: len(partners)] + (1 - share) * labels[partners]


def noise_field(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Return noise of mean 0 and variance 1 for pictures of height x width, with room to move: [height+, width+, 3].

    Each value is the sum of 12 uniforms less 6 (Irwin-Hall), so that it is the same on every platform.
    """
    shape = (height + NOISE_SLACK, width + NOISE_SLACK, 3)
    drawn = words(seed, 0, np.arange(np.prod(shape)), Stream.NOISE_FIELD, 12)
    total: NDArray[np.float64] = drawn.astype(np.float64).sum(axis=1) * 2.0**-32 - 6
    return total.astype(np.float32).reshape(shape)

"""From decoded pictures to the batch a network sees: colours, normalisation, mixing, erasing.

One implementation in torch, on whatever device, behind every loader. Each step works pixel by pixel, so that a sample's
pixels do not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import soft_labels
from pipelines.draws import NOISE_SLACK, Stream
from pipelines.philox import words
from pipelines.plan import Views
from pipelines.policy import ViewPolicy


class Finish:
    """What is the same for every batch of a run: the policy, the normalisation, the noise. Holds no state.

    mean, std: per channel, of pixels in [0, 1]; seed: the plan's.
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
    ) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean={tuple(mean)} and std={tuple(std)}: give three numbers each, std above 0")
        self.policy = policy
        self.num_classes = num_classes
        self.device = device
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(std, dtype=torch.float32, device=device)
        noisy = policy.erase_probability > 0 and policy.erase_fill == "noise"
        self.noise = self._put(noise_field(seed, policy.height, policy.width)) if noisy else None

    def __call__(
        self, images: Tensor, views: Views, partner_rows: NDArray[np.int64], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """uint8 pictures [N,H,W,3] of N views -> (float32 [B,3,H,W], channels-last, normalised; labels).

        The first B of the N are asked for; the others are there as partners. partner_rows [B]: where among the N each
        partner is; labels [N] int64. In this order: the view's colour change, clipped to [0, 1]; normalisation; mixing
        with the partner's picture of the same stage; erasing of the mixture. Labels: [B] int64, or, where the policy
        mixes, [B,K] float32 with the shares of the two pictures (erasing changes no label).
        """
        num = len(partner_rows)
        pixels = images.float().div_(255)
        if views.colour is not None:
            pixels = change_colour(pixels, self._put(views.colour))
        pixels = pixels.sub_(self.mean).div_(self.std)
        pictures, labels_out = pixels[:num], labels[:num]
        if self.policy.mixes:
            partners, share = self._put(partner_rows), self._put(views.mix_lambda[:num])
            pictures = mix(pictures, pixels[partners], share, self._put(views.mix_box[:num]))
            labels_out = mix_labels(soft_labels(labels, self.num_classes), partners, share)
        if views.erase is not None:
            pictures = torch.where(
                inside(self._put(views.erase[:num]), *pictures.shape[1:3]), self._fill(views, num), pictures
            )
        return pictures.permute(0, 3, 1, 2), labels_out

    def _fill(self, views: Views, num: int) -> Tensor:
        """What erased pixels become: 0, or each picture's window of the noise field [B,H,W,3]."""
        if self.noise is None:
            return torch.zeros((), device=self.device)
        assert views.noise_offset is not None, "a view with erased boxes says where their noise is"
        offset = self._put(views.noise_offset[:num].astype(np.int64))
        rows = offset[:, 0, None] + torch.arange(self.policy.height, device=self.device)
        columns = offset[:, 1, None] + torch.arange(self.policy.width, device=self.device)
        return self.noise[rows[:, :, None], columns[:, None, :]]

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def change_colour(pixels: Tensor, colour: Tensor) -> Tensor:
    """clip(matrix x + offset, 0, 1) per pixel: pixels [N,H,W,3] in [0, 1], colour [N,3,4] -> [N,H,W,3].

    Written out by channel: a matrix product's rounding depends on the size of the batch.
    """
    columns = colour[:, None, None].unbind(dim=-1)  # four of [N,1,1,3]
    total = columns[3] + pixels[..., 0:1] * columns[0]
    for channel in (1, 2):
        total += pixels[..., channel : channel + 1] * columns[channel]
    return total.clamp_(0, 1)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in the box (y, x, h, w) of their picture: [B,4] -> bool [B,height,width,1]."""
    y, x, h, w = boxes[:, :, None].unbind(dim=1)  # each [B,1]
    rows = torch.arange(height, device=boxes.device)
    columns = torch.arange(width, device=boxes.device)
    in_rows = (rows >= y) & (rows < y + h)
    in_columns = (columns >= x) & (columns < x + w)
    return (in_rows[:, :, None] & in_columns[:, None, :])[..., None]


def mix(pictures: Tensor, partners: Tensor, share: Tensor, boxes: Tensor) -> Tensor:
    """share * picture + (1 - share) * partner; where there is a box, the partner inside and the picture outside.

    pictures, partners [B,H,W,3]; share [B]; boxes [B,4], area 0 for none.
    """
    has_box = (boxes[:, 2] * boxes[:, 3] > 0)[:, None, None, None]
    outside = ~inside(boxes, *pictures.shape[1:3])
    weight = torch.where(has_box, outside.float(), share[:, None, None, None])
    return weight * pictures + (1 - weight) * partners


def mix_labels(labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share * own + (1 - share) * partner's: labels [N,K], partners [B] rows of it, share [B] -> [B,K]."""
    share = share[:, None]
    return share * labels[: len(partners)] + (1 - share) * labels[partners]


def noise_field(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Noise of mean 0 and variance 1 for pictures of height x width, with room to move: [height+, width+, 3].

    Each value is the sum of 12 uniforms less 6 (Irwin-Hall), so that it is the same on every platform.
    """
    shape = (height + NOISE_SLACK, width + NOISE_SLACK, 3)
    drawn = words(seed, 0, np.arange(np.prod(shape)), Stream.NOISE_FIELD, 12)
    total: NDArray[np.float64] = drawn.astype(np.float64).sum(axis=1) * 2.0**-32 - 6
    return total.astype(np.float32).reshape(shape)

"""From decoded pictures to the batch a network sees: operations, colours, normalisation, mixing, erasing.

Done in two ways that give the same bits, behind every loader: on a CPU one picture after the other, which stays in its
cache (`pipelines.loaders.render_pictures`), on a GPU all at once, by few kernels (`pipelines.loaders.render_batch`).
Each step works on one picture, or one pixel of two, so that a sample's pixels do not depend on what else is in its
batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcore.batch import soft_labels
from kdcore.errors import Refused
from pipelines.loaders.render_batch import BatchRenderer
from pipelines.loaders.render_pictures import PictureRenderer
from pipelines.views.draws import NOISE_SLACK, Stream
from pipelines.views.philox import words
from pipelines.views.plan import Views
from pipelines.views.policy import ViewPolicy


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
        noisy = policy.erase_probability > 0 and policy.erase_fill == "noise"
        noise = torch.from_numpy(noise_field(seed, policy.height, policy.width)).to(device) if noisy else None
        # A picture's rows are handled as 3 W values: a last dimension of 3 would keep a CPU from vectorising.
        renderer = PictureRenderer if device.type == "cpu" else BatchRenderer
        self.render = renderer(policy, self._of_row(mean), self._of_row(std), noise)

    def __call__(
        self, images: Tensor, views: Views, partner_rows: NDArray[np.int64], labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (what a network sees of uint8 pictures [N,H,W,3] of N views, its labels).

        What it sees is float32 [B,3,H,W], normalised. The first B of the N are asked for; the others are there as
        partners. partner_rows [B]: where among the N each partner is; labels [N] int64 or, of images with several,
        [N,K]. In this order: the view's operations; its colour change, clipped to [0, 1]; normalisation; mixing with
        the partner's picture of the same stage; erasing of the mixture (or, by erase_first, of the two pictures
        before). Labels: [B] int64 (or [B,K]), or, where the policy mixes, [B,K] float32 with the shares of the two
        pictures (erasing changes no label).
        """
        pictures = self.render(images, views, partner_rows)
        if self.policy.mixes:
            partners, share = self._put(partner_rows), self._put(views.mix_lambda[: len(partner_rows)])
            labels = mix_labels(soft_labels(labels, self.num_classes), partners, share)
        pictures = pictures.view(-1, self.policy.height, self.policy.width, 3).permute(0, 3, 1, 2)
        return pictures if self.channels_last else pictures.contiguous(), labels

    def at(self, views: Views) -> Finish:
        """Return the `Finish` for pictures of the size that these views have."""
        policy = self.policy.at(views.views)
        return self if policy is self.policy else self._of_size(policy)

    def _of_row(self, of_channels: Sequence[float]) -> Tensor:
        """Return numbers of channels for each value of a picture's row: [3] -> [3W]."""
        return torch.tensor(of_channels, dtype=torch.float32, device=self.device).repeat(self.policy.width)

    def _put(self, array: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)


def mix_labels(labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return share * own + (1 - share) * partner's: labels [N,K], partners [B] rows of it, share [B] -> [B,K]."""
    share = share[:, None]
    return share * labels[: len(partners)] + (1 - share) * labels[partners]


def noise_field(seed: int, height: int, width: int) -> NDArray[np.float32]:
    """Return noise of mean 0 and variance 1 for pictures of height x width, with room to move: [height+, width+, 3].

    Each value is the sum of 12 uniforms less 6 (Irwin-Hall), so that it is the same on every platform.
    """
    field = np.empty((height + NOISE_SLACK, width + NOISE_SLACK, 3), dtype=np.float32)
    for number, row in enumerate(field):  # one at a time: the words of all take hundreds of times the field's memory
        ids = np.arange(number * row.size, (number + 1) * row.size)
        drawn = words(seed, 0, ids, Stream.NOISE_FIELD, 12)
        row[:] = (drawn.astype(np.float64).sum(axis=1) * 2.0**-32 - 6).reshape(row.shape)
    return field

"""Passes over a data set without training: a network's metrics, a teacher's, the features at its taps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.device_memory import refuse_full_gpu
from cluster.rank import Rank
from cluster.scores import counts_for, over_ranks
from kdcore.online_teacher import OnlineTeacher
from kdcore.quality.collect import LayerQuality
from pipelines.loaders.base import Loader, Request, requests_of

SMALLER_BATCH = "take a smaller data.evaluation_batch"


def every_image_once(num_images: int, rank: Rank, batch_size: int) -> Iterator[Request]:
    """Return this rank's share of the images as requests: no padding, no dropped tail, an empty share gives none."""
    share = rank.slice_of(num_images)
    return requests_of(np.arange(share.start, share.stop), batch_size)


@refuse_full_gpu(SMALLER_BATCH)
@torch.no_grad()
def evaluate(
    model: nn.Module, loader: Loader, num_images: int, rank: Rank, teacher_logits: Tensor | None = None
) -> dict[str, float]:
    """Return the model's metrics over every image once, the same on every rank.

    teacher_logits: those of this rank's share of the images [n,K], from `teacher_pass`.
    """
    model.eval()
    counts = counts_for(loader.source, rank.device)
    counts.has_teacher = teacher_logits is not None
    done = 0
    for batch in loader.load(every_image_once(num_images, rank, loader.max_batch)):
        theirs = None if teacher_logits is None else teacher_logits[done : done + len(batch)].to(rank.device)
        counts.add(model(batch.images), batch.labels, theirs)
        done += len(batch)
    return over_ranks(counts, num_images, rank)


@refuse_full_gpu(SMALLER_BATCH)
def quality_pass(
    teacher: OnlineTeacher, loader: Loader, ids: NDArray[np.int64], num_classes: int, **options: Any
) -> LayerQuality:
    """Collect the features of the given images at the teacher's taps for their scores; see `LayerQuality`."""
    collected = LayerQuality(num_classes, **options)
    for batch in loader.load(requests_of(ids, loader.max_batch)):
        collected.add(teacher(batch).features, batch.labels, batch.sample_ids)
    return collected


@refuse_full_gpu(SMALLER_BATCH)
def teacher_pass(
    teacher: OnlineTeacher, loader: Loader, num_images: int, rank: Rank
) -> tuple[dict[str, float], Tensor]:
    """Return the teacher's own metrics, and its logits [n,K] on this rank's share of the images, in host memory."""
    counts = counts_for(loader.source, rank.device)
    logits = []
    for batch in loader.load(every_image_once(num_images, rank, loader.max_batch)):
        answer = teacher(batch).logits
        assert answer is not None
        counts.add(answer, batch.labels)
        logits.append(answer.float().cpu())
    return over_ranks(counts, num_images, rank), torch.cat(logits) if logits else torch.empty(0)

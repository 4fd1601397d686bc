"""A teacher's class statistics: the means of its features and the similarity of its logits, as terms need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.device_memory import refuse_full_gpu
from cluster.passes import every_image_once
from cluster.rank import Rank
from kdcore.batch import ClassStatistics, Needs
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.terms.wkd import class_similarity
from pipelines.data.source import Source
from pipelines.loaders.base import Loader, requests_of

STATISTICS_BATCH = 128  # fixed, so that training reads the same bits whatever validation's batch size
LARGER_GPU = f"statistics of classes take {STATISTICS_BATCH} images at once on every machine: take a GPU with more"


def class_statistics(
    teacher: OnlineTeacher,
    train: Source,
    training_loader: Callable[[], Loader],
    evaluation_loader: Callable[[], Loader],
    rank: Rank,
) -> ClassStatistics:
    """Compute the statistics of the training set that the teacher's needs name, in one or two passes over it.

    Means are taken of the images as they are trained on (their view 0), similarity of images cut as for validation,
    both as the authors of the terms do; a loader is made only if its pass is needed.
    """
    means: dict[str, Tensor] = {}
    similarity = None
    if teacher.needs.class_means:
        means = class_means(teacher, training_loader(), len(train), len(train.classes), rank)
    if teacher.needs.class_similarity:
        labels = train.labels.astype(np.int64)
        similarity = similarity_of_classes(teacher, evaluation_loader(), labels, len(train.classes), rank)
    return ClassStatistics(means, similarity)


def stand_in_statistics(
    needs: Needs, shapes: Mapping[str, Sequence[int]], labels: NDArray[np.int64], num_classes: int
) -> ClassStatistics:
    """Return random statistics of the shapes that a pass over the images would give, to try out a method.

    shapes: of the teacher's taps, without the batch. Refused where the pass would be.
    """
    generator = torch.Generator().manual_seed(0)
    if needs.class_similarity:
        smallest_class(labels, num_classes)
    means = {tap: torch.randn(num_classes, shapes[tap][0], generator=generator) for tap in sorted(needs.class_means)}
    return ClassStatistics(means, torch.rand(num_classes, num_classes, generator=generator))


def smallest_class(labels: NDArray[np.int64], num_classes: int) -> int:
    """Return the number of images in the smallest class. Refused where that is too few to compare classes."""
    fewest = int(np.bincount(labels, minlength=num_classes).min())
    if fewest < 2:
        raise Refused(
            f"a class has {fewest} training images, too few to measure the similarity between classes (wkd_l); "
            "it takes 2"
        )
    return fewest


@refuse_full_gpu(LARGER_GPU)
@torch.no_grad()
def class_means(
    teacher: OnlineTeacher, loader: Loader, num_images: int, num_classes: int, rank: Rank
) -> dict[str, Tensor]:
    """Return {tap: the mean of the teacher's features over each class's images [K,D]}; maps are averaged over space."""
    sums: dict[str, Tensor] = {}
    images = torch.zeros(num_classes, device=rank.device)
    for batch in loader.load(every_image_once(num_images, rank, loader.max_batch)):
        images.index_add_(0, batch.labels, torch.ones(len(batch), device=rank.device))
        for tap, features in teacher(batch).features.items():
            if tap in teacher.needs.class_means:
                vectors = features.float().flatten(2).mean(dim=2) if features.ndim == 4 else features.float()
                total = sums.setdefault(tap, torch.zeros(num_classes, vectors.shape[1], device=rank.device))
                total.index_add_(0, batch.labels, vectors)
    rank.add_up(images)
    for tap in sorted(sums):
        rank.add_up(sums[tap])
    return {tap: total / images[:, None] for tap, total in sums.items()}


@refuse_full_gpu(LARGER_GPU)
@torch.no_grad()
def similarity_of_classes(
    teacher: OnlineTeacher, loader: Loader, labels: NDArray[np.int64], num_classes: int, rank: Rank
) -> Tensor:
    """Return `class_similarity` of the teacher's logits on the training images: [K,K], the same on every rank.

    From the first images of each class by sample id, as many as the smallest class has. Memory: num_classes^2 floats
    for each, and as many again for their inner products (ImageNet: 3 GB and 2 GB). Refused where a class has one.
    """
    fewest = smallest_class(labels, num_classes)
    ids = np.concatenate([np.flatnonzero(labels == number)[:fewest] for number in range(num_classes)])
    share = rank.slice_of(len(ids))
    logits = torch.zeros(len(ids), num_classes, device=rank.device)
    done = share.start
    for batch in loader.load(requests_of(ids[share.start : share.stop], loader.max_batch)):
        answer = teacher(batch).logits
        assert answer is not None
        logits[done : done + len(batch)] = answer.float()
        done += len(batch)
    return class_similarity(rank.add_up(logits).view(num_classes, fewest, num_classes))

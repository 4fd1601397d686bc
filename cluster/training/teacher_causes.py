"""Why a teacher answers so badly: some of the validation images are shown to it in other ways.

For a teacher that answers online, whose network is at hand. Not here: whether it answers badly (`teacher_check`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor

from cluster.assembly import Assembly
from kdcore.layout import NETWORK_ERRORS
from kdcore.models import input_statistics
from kdcore.online_teacher import OnlineTeacher, renormalisation, renormalised
from pipelines.loaders.base import Loader, requests_of
from pipelines.spread import evenly_spread

NUM_IMAGES = 1000
BATCH = 128  # whatever the image size that is tried
DEVIATIONS = 4.0  # standard deviations beyond chance, in some seven tries
NORMALISATIONS = (
    (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
)


@dataclass(frozen=True)
class Trial:
    """A way to show the images. change: of the batch's images, as the loader gives them; remedy: how to set it."""

    name: str
    remedy: str
    loader: Loader
    change: Callable[[Tensor], Tensor]


def likelier_cause(run: Assembly, split: str) -> str:
    """Return what makes the teacher answer better, with its remedy, or what was tried in vain; equal on all ranks."""
    run = run.for_teacher
    teacher, index = run.teachers.single, run.indexes[split]
    ids = evenly_spread(len(index), NUM_IMAGES)
    loader = run.loader(split, run.evaluation_plan(split), BATCH)
    as_it_is = top1(run, Trial("", "", loader, teacher.normalised), ids)
    found = [(top1(run, trial, ids), trial) for trial in trials(run, teacher, split, loader)]
    best, trial = max(found, key=lambda pair: pair[0])
    if best > as_it_is + DEVIATIONS * math.sqrt(max(as_it_is * (1 - as_it_is), 1 / len(ids)) / len(ids)):
        return (
            f"tried on {len(ids)} of them: {trial.name} it is right on {best:.2%}, not {as_it_is:.2%}; {trial.remedy}"
        )
    return f"tried in vain on {len(ids)} of them: {', '.join(trial.name for _, trial in found)}"


def trials(run: Assembly, teacher: OnlineTeacher, split: str, loader: Loader) -> Iterator[Trial]:
    """Yield the ways to show the images that are not the run's own."""
    own = input_statistics(teacher.model)
    for mean, std in NORMALISATIONS:
        if (mean, std) != own:
            shown = f"{{mean: [{_numbers(mean)}], std: [{_numbers(std)}]}}"
            yield Trial(
                f"with mean {mean[0]:.3g} and std {std[0]:.3g} of red",
                f"set teacher.args.pretrained_cfg_overlay={shown}",
                loader,
                partial(renormalised, by=renormalisation(run.statistics, (mean, std))),
            )
    yield Trial(
        "with red and blue exchanged",
        "exchange the input channels of its first layer in the file of its weights",
        loader,
        lambda images: teacher.normalised(images).flip(1),
    )
    policy = run.evaluation_plan(split).policy
    size = int(getattr(teacher.model, "pretrained_cfg", {}).get("input_size", (3, 0, 0))[-1])
    if size not in (0, policy.height):
        plan = replace(run.evaluation_plan(split), policy=policy.model_copy(update={"size": size}))
        yield Trial(
            f"at {size} pixels",
            f"set teacher.image_size={size}, or leave it out and set views.size={size}",
            run.loader(split, plan, BATCH),
            teacher.normalised,
        )


@torch.no_grad()
def top1(run: Assembly, trial: Trial, ids: NDArray[np.int64]) -> float:
    """Return the teacher's top-1 on some images as a trial shows them; 0 where it does not take them so."""
    teacher, rank = run.teachers.single, run.rank
    share = rank.slice_of(len(ids))
    hits = torch.zeros((), dtype=torch.float64, device=rank.device)
    for batch in trial.loader.load(requests_of(ids[share.start : share.stop], BATCH)):
        try:
            hits += (teacher.model(trial.change(batch.images)).argmax(dim=1) == batch.labels).sum()
        except NETWORK_ERRORS:  # a size that it is not made for, or that the GPU has no memory for
            break
    return float(rank.add_up(hits)) / len(ids)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)

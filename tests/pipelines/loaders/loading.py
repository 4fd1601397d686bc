"""Loaders of small pictures, plain and with every operation, and what they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch

from pipelines.data.source import Source
from pipelines.loaders.base import Loader, Request, requests_of
from pipelines.loaders.choose import build_loader
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

Item = TypeVar("Item")

KINDS = ["reference", "dali"]
FULL = ViewPolicy(
    size=24,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    erase_probability=0.5,
    erase_fill="noise",
    mixup_alpha=0.5,
    cutmix_alpha=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
)
PLAIN = ViewPolicy(size=24)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def loader(kind: str, index: Source, policy: ViewPolicy, seed: int = 4, max_batch: int = 16) -> Loader:
    return build_loader(
        kind,  # type: ignore[arg-type]
        index,
        ViewPlan(policy, seed, len(index)),
        mean=MEAN,
        std=STD,
        device=torch.device("cpu"),
        num_threads=2,
        max_batch=max_batch,
    )


def requests(num: int, batch: int, view: int = 0) -> list[Request]:
    return list(requests_of(np.arange(num), batch, view))


def only(items: Iterator[Item]) -> Item:
    (item,) = items
    return item

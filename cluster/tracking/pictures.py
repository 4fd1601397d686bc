"""The picture of a run: what the student sees. How it learns is drawn where runs are read (`ops.review`, MLflow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from cluster.tracking.captions import MAX_IMAGES, captioned, captions_of
from kdcore.batch import Batch, Statistics
from pipelines.files import write_whole


def first_batch(
    batch: Batch,
    statistics: Statistics,
    path: Path,
    classes: Sequence[str] = (),
    teacher_logits: Tensor | None = None,
    multi_label: bool = False,
) -> Path:
    """Save the views of a batch (at most 64) as the student sees them, normalisation undone.

    classes: whose names stand below the images, with the teacher's likeliest one where its logits [B,K] are given; none
    for images without labels. multi_label: whether an image may have several.
    """
    if not classes:
        return sheet(batch.images[:MAX_IMAGES], statistics, path)
    captions = captions_of(batch, classes, teacher_logits, multi_label)[:MAX_IMAGES]
    captioned(pixels_of(batch.images[:MAX_IMAGES], statistics), captions, path)
    return path


def pixels_of(images: Tensor, statistics: Statistics) -> Tensor:
    """Return images [N,3,H,W] in [0, 1], normalisation undone."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in statistics)
    return (images.float() * std + mean).clamp(0, 1)


def sheet(images: Tensor, statistics: Statistics, path: Path, columns: int = 8) -> Path:
    """Save images [N,3,H,W] as a grid, normalisation undone."""
    grid = make_grid(pixels_of(images, statistics).contiguous(), nrow=columns, padding=2, pad_value=1.0)
    write_whole(path, lambda file: save_image(grid, file, format=path.suffix.lstrip(".")))
    return path

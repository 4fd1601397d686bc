"""Pictures of a run: what the student sees, and how it learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from cluster.tracking.captions import MAX_IMAGES, captioned, captions_of
from cluster.tracking.journal import read_journal
from kdcore.batch import Batch
from pipelines.files import write_figure, write_whole

PANELS = {
    "loss": ("train/loss",),
    "top-1": ("train/top1", "val/top1", "held_out/top1"),
    "mAP": ("val/mAP", "held_out/mAP"),
    "agreement with the teacher": ("val/agreement", "held_out/agreement"),
    "images/s": ("speed/images_per_second",),
}


Statistics = tuple[tuple[float, ...], tuple[float, ...]]


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
    """Save images [N,3,H,W] beside and below each other, normalisation undone."""
    grid = make_grid(pixels_of(images, statistics).contiguous(), nrow=columns, padding=2, pad_value=1.0)
    write_whole(path, lambda file: save_image(grid, file, format=path.suffix.lstrip(".")))
    return path


def curves(metrics_path: Path, path: Path) -> Path:
    """Draw the learning curves of a journal, one panel a quantity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_journal(metrics_path)
    shown = {title: keys for title, keys in PANELS.items() if any(key in row for row in rows for key in keys)}
    figure, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 3.5), layout="constrained", squeeze=False)
    for axis, (title, keys) in zip(axes[0], shown.items(), strict=True):
        for key in keys:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=key, marker="." if len(points) < 40 else None)
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    write_figure(path, figure, dpi=120)
    plt.close(figure)
    return path

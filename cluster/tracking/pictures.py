"""Pictures of a run: what the student sees, and how it learns."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.utils import make_grid, save_image

from cluster.tracking.journal import read_journal
from kdcore.batch import Batch

PANELS = {
    "loss": ("train/loss",),
    "top-1": ("train/top1", "val/top1", "held_out/top1"),
    "agreement with the teacher": ("val/agreement", "held_out/agreement"),
    "images/s": ("system/images_per_second",),
}


def first_batch(batch: Batch, statistics: tuple[tuple[float, ...], tuple[float, ...]], path: Path) -> Path:
    """The views of a batch (at most 64) as the student sees them, normalisation undone."""
    mean, std = (torch.tensor(values, device=batch.images.device).view(3, 1, 1) for values in statistics)
    images = (batch.images[:64].float() * std + mean).clamp(0, 1)
    save_image(make_grid(images.contiguous(), nrow=8, padding=2, pad_value=1.0), path)
    return path


def curves(metrics_path: Path, path: Path) -> Path:
    """The learning curves of a metrics.jsonl, one panel a quantity."""
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
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path

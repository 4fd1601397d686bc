"""How a network's answers are judged: by the one label of an image, or by its several; the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

import torch

from cluster.rank import Rank
from kdcore.metrics import Counts
from kdcore.multi_label import MultiLabelCounts
from pipelines.data.source import Source

# Rates that say how good a network is, the first one present above all, as people call them.
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "class_mean_top1": "mean per-class accuracy",
    "mAP": "mAP",
    "f1": "F1",
}
# What means nothing of images without labels, or of a classifier that does not know the classes.
OF_LABELS = frozenset({*TITLES, "nll"})


def counts_for(source: Source, device: torch.device | str) -> Counts | MultiLabelCounts:
    """Return what counts answers to the images of a source, nothing counted yet."""
    return MultiLabelCounts(len(source.classes), device) if source.multi_label else Counts(len(source.classes), device)


def over_ranks(counts: Counts | MultiLabelCounts, num_images: int, rank: Rank) -> dict[str, float]:
    """Return the metrics of all ranks' answers, each to its share of the images."""
    if isinstance(counts, MultiLabelCounts):
        return counts.over_ranks(rank.slice_of(num_images), num_images, rank.add_up).result()
    rank.add_up(counts.totals)
    return counts.result()


def in_words(metrics: Mapping[str, float], prefix: str = "") -> str:
    """Return the rates that there are, as 'top-1 61.20%, top-5 83.10%' or 'mAP 54.30%, F1 48.00%'."""
    rates = {title: metrics[prefix + name] for name, title in TITLES.items() if says_more(prefix + name, metrics)}
    return ", ".join(f"{title} {value:.2%}" for title, value in rates.items())


def says_more(metric: str, metrics: Mapping[str, float]) -> bool:
    """Return whether a metric is there, and is no mean over classes of equal size, which top-1 is already."""
    top1 = metrics.get(metric.replace("class_mean_top1", "top1"))
    return metric in metrics and (not metric.endswith("class_mean_top1") or not isclose(metrics[metric], top1 or 0.0))

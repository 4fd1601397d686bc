"""How a network's answers are judged: by an image's one label, or by its several labels; the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose

import torch

from cluster.metric_names import VALIDATED
from cluster.rank import Rank
from kdcore.metrics import Counts
from kdcore.multi_label import MultiLabelCounts
from pipelines.data.source import Source

# Rates that say how good a network is, by their usual names; the first one present is the main one.
TITLES = {metric.name: metric.title for metric in VALIDATED if metric.needs in ("one label", "several labels")}


def counts_for(source: Source, device: torch.device | str) -> Counts | MultiLabelCounts:
    """Return an empty counter of answers to the images of a source."""
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
    """Return whether a metric is there, and is not a mean over classes of equal size, which equals top-1."""
    top1 = metrics.get(metric.replace("class_mean_top1", "top1"))
    return metric in metrics and (not metric.endswith("class_mean_top1") or not isclose(metrics[metric], top1 or 0.0))

"""How scores are written for people: a share of images in percent, any other number as it is."""

from __future__ import annotations

RATES = (
    "top1",
    "top5",
    "class_mean_top1",
    "mAP",
    "f1",
    "agreement",
    "agreement_top5",
    "knn_top1",
    "neighbour_agreement",
)


def is_rate(metric: str) -> bool:
    """Return whether a metric is a share of images, read as a percentage."""
    return metric.rpartition("/")[2] in RATES


def score_text(metric: str, value: float) -> str:
    """Return a value of a metric as tables, figures and reasons write it: a rate in percent."""
    return f"{value:.2%}" if is_rate(metric) else f"{value:.4f}"

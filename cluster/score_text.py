"""How scores are written for people: a share of images in percent, any other number as it is."""

from __future__ import annotations

from cluster.metric_names import find_metric


def is_rate(metric: str) -> bool:
    """Return whether a metric is a share of images, read as a percentage."""
    known = find_metric(metric)
    return known is not None and known.is_share


def score_text(metric: str, value: float) -> str:
    """Return a value of a metric as tables, figures and reasons write it: a rate in percent."""
    return f"{value:.2%}" if is_rate(metric) else f"{value:.4f}"

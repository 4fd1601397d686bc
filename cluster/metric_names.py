"""What is known of a metric by its name: what people call it, its unit, which values are better, and what it needs.

That covers every number that a validation, an evaluation or a run's end logs, and that recipes can be compared by. Add
a new one to `METRICS`: sweeps, the review page and the model card read it there.

Not here: how the metrics are computed (`kdcore.metrics`, `kdcore.multi_label`, `kdcore.probing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kdcore.errors import Refused

Mode = Literal["min", "max"]
# What a validation must have to measure a metric: labels of some kind, a teacher's answers, or features to compare.
Need = Literal["labels", "one label", "several labels", "answers", "neighbours", "teacher's features"]


@dataclass(frozen=True)
class Metric:
    """A metric by the last word of its name, `top1` of `val/top1`.

    better: which values are, the largest or the smallest; is_share: whether it is a share of images, read in percent;
    unit: of any other number whose name does not say it; note: what the title leaves open; needs: None for what no
    validation measures.
    """

    name: str
    title: str
    better: Mode
    is_share: bool = False
    unit: str = ""
    note: str = ""
    needs: Need | None = None

    @property
    def whole_title(self) -> str:
        """The title with its note."""
        return f"{self.title} ({self.note})" if self.note else self.title

    @property
    def form(self) -> str:
        """The format of a value, as reports write it."""
        return "{:.2%}" if self.is_share else f"{{:.4f}} {self.unit}".rstrip()


METRICS = {
    metric.name: metric
    for metric in (
        Metric("top1", "top-1", "max", is_share=True, needs="one label"),
        Metric("top5", "top-5", "max", is_share=True, needs="one label"),
        Metric("class_mean_top1", "mean per-class accuracy", "max", is_share=True, needs="one label"),
        Metric("mAP", "mAP", "max", is_share=True, needs="several labels"),
        Metric("f1", "F1", "max", is_share=True, note="micro, of probabilities from 0.5 on", needs="several labels"),
        Metric("agreement", "agreement with the teacher", "max", is_share=True, needs="answers"),
        Metric("nll", "negative log-likelihood", "min", unit="nats", needs="labels"),
        Metric("kl", "KL to the teacher", "min", unit="nats", needs="answers"),
        Metric("knn_top1", "nearest neighbours' top-1", "max", is_share=True, needs="neighbours"),
        Metric(
            "neighbour_agreement",
            "neighbours shared with the teacher",
            "max",
            is_share=True,
            needs="teacher's features",
        ),
        Metric("agreement_top5", "top-5 overlap with the teacher", "max", is_share=True),
        Metric("ece", "expected calibration error", "min"),
        Metric("loss", "loss", "min"),
        Metric("parameters", "parameters", "min"),
        Metric("megabytes", "size of the weights", "min"),
        Metric("gmacs", "multiply-adds for one image", "min"),
        Metric("latency_ms", "latency of one image", "min"),
        Metric("train_seconds", "training time", "min"),
        Metric("device_hours", "training time of all workers", "min"),
        Metric("cache_bytes", "size of the cache", "min"),
        Metric("wait_share", "share of the time spent waiting for images", "min"),
        Metric("images_per_second", "images per second", "max"),
        Metric("mean_images_per_second", "images per second", "max"),
    )
}
VALIDATED = tuple(metric for metric in METRICS.values() if metric.needs)


def find_metric(name: str) -> Metric | None:
    """Return what is known of a logged metric, such as `held_out/top1`; None for an unknown name.

    A teacher's, `val/teacher_top1`, is the same metric of another network.
    """
    return METRICS.get(name.rpartition("/")[2].removeprefix("teacher_"))


def mode_of(name: str) -> Mode:
    """Return whether larger or smaller values of a logged metric are better. Refused where that is not known."""
    metric = find_metric(name)
    if metric is None:
        raise Refused(
            f"{name}: it is not known whether more or less of it is better, so it can rank nothing; take a metric "
            "such as val/top1, val/nll or cost/train_seconds"
        )
    return metric.better

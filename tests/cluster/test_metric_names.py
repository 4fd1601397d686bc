"""What is known of a metric by its name."""

import pytest

from cluster.metric_names import METRICS, VALIDATED, find_metric, mode_of
from cluster.training.selection import SCORES
from kdcore.errors import Refused


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("val/top1", "max"),
        ("held_out/nll", "min"),
        ("val/teacher_top1", "max"),
        ("evaluation/val/teacher_ece", "min"),
        ("cost/train_seconds", "min"),
        ("model/latency_ms", "min"),
        ("model/parameters", "min"),
        ("data/cache_bytes", "min"),
        ("speed/mean_images_per_second", "max"),
        ("train/loss", "min"),
    ],
)
def test_which_values_are_better(name, mode):
    """The slowest run was the best by cost/train_seconds."""
    assert mode_of(name) == mode


@pytest.mark.parametrize("name", ["train/gradient_norm", "train/kd", "val/top9", "val/"])
def test_a_metric_of_which_nothing_is_known_ranks_nothing(name):
    with pytest.raises(Refused, match=f"^{name}: it is not known whether more or less of it is better"):
        mode_of(name)


def test_how_values_are_written():
    assert METRICS["top1"].form.format(0.5) == "50.00%"
    assert METRICS["kl"].form.format(0.5) == "0.5000 nats"
    assert METRICS["ece"].form.format(0.5) == "0.5000"
    assert METRICS["f1"].whole_title == "F1 (micro, of probabilities from 0.5 on)"


def test_what_weights_are_chosen_by_is_validated():
    assert {find_metric(f"held_out/{name}") for name in SCORES} <= set(VALIDATED)

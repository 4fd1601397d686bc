"""How scores are written."""

from cluster.score_text import is_rate, score_text
from cluster.scores import in_words


def test_rates_are_in_percent_and_other_numbers_as_they_are():
    assert is_rate("held_out/top1")
    assert not is_rate("val/nll")
    assert score_text("held_out/top1", 0.9675) == "96.75%"
    assert score_text("held_out/nll", 0.9675) == "0.9675"


def test_a_mean_over_classes_is_told_where_it_is_not_top1():
    found = {"val/top1": 0.9, "val/top5": 1.0, "val/class_mean_top1": 0.5}
    assert in_words(found, "val/") == "top-1 90.00%, top-5 100.00%, mean per-class accuracy 50.00%"
    assert in_words(found | {"val/class_mean_top1": 0.1 + 0.8}, "val/") == "top-1 90.00%, top-5 100.00%"

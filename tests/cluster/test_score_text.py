"""How scores are written."""

from cluster.score_text import is_rate, score_text


def test_rates_are_in_percent_and_other_numbers_as_they_are():
    assert is_rate("held_out/top1")
    assert not is_rate("val/nll")
    assert score_text("held_out/top1", 0.9675) == "96.75%"
    assert score_text("held_out/nll", 0.9675) == "0.9675"

"""What a sweep amounts to: its table and its pictures."""

import pytest
from rich.console import Console

from ops.sweep.plots import plots
from ops.sweep.report import ends_of_runs, ranked, result_table
from tests.ops.sweep.conftest import ENDS, imagined


def test_ranking(tmp_path):
    """Whole points by their means, then those with stopped runs, then those with nothing to show."""
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1])
    results = ranked(plan, trials)
    assert [result.number for result in results] == [2, 0, 1, 3]
    assert [result.mean for result in results] == [pytest.approx(0.75), pytest.approx(0.6), pytest.approx(0.85), None]
    assert results[0].stdev == pytest.approx(0.3 / 2**0.5)
    assert [ends_of_runs(result) for result in results] == [
        "2 finished",
        "2 finished",
        "1 finished, 1 stopped at 2",
        "2 failed at 0",
    ]
    shown = Console(width=120)
    with shown.capture() as capture:
        shown.print(result_table(plan, results))
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines() if line.startswith("│")]
    assert lines[0] == ["1", "2", "1", "0.7500", "±", "0.2121", "74.00%", "2", "finished"]


def test_pictures(tmp_path):
    """Every kind that the space allows."""
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1], layers={"ranked": 1})
    made = plots(plan, ranked(plan, trials))
    assert [path.name for path in made] == ["curves.png", "response.png", "heat_temperature_weight.png", "layers.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)

"""What a sweep amounts to: its table and its pictures."""

import math

import pytest
from rich.console import Console

from ops.sweep import plots as report_plots
from ops.sweep.plots import plots
from ops.sweep.report import best_recipe, ends_of_runs, ranked, result_table, validation_rate, validation_text
from ops.sweep.view import SweepView
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
    assert lines[0] == ["1", "2", "1", "75.00%", "±", "21.21%", "74.00%", "2", "finished"]


def test_pictures(tmp_path):
    """Every kind that the space allows."""
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1], layers={"ranked": 1})
    made = plots(plan, ranked(plan, trials))
    assert [path.name for path in made] == ["curves.png", "response.png", "heat_temperature_weight.png", "layers.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in made)


def test_a_score_that_is_no_number_is_below_every_other(tmp_path):
    """It is no best; what has no score at all is last."""
    ends = {f"{name}-seed0": ("finished", score) for name, score in (("000", math.nan), ("001", 0.5), ("002", 0.9))}
    plan, trials = imagined(tmp_path, ends | {"003-seed0": ("stopped", 0.1)}, weight=[1.0, 0.1, 0.2, 0.3])
    results = ranked(plan, trials)
    assert [(result.number, result.mean) for result in results] == [(2, 0.9), (1, 0.5), (3, 0.1), (0, None)]
    plan, trials = imagined(tmp_path, {"000-seed0": ("finished", math.nan)}, weight=[1.0])
    assert best_recipe(plan, ranked(plan, trials)) is None


def test_two_runs_of_the_same_scores_are_seen_to_be_two(tmp_path, monkeypatch):
    plan, trials = imagined(tmp_path, {"000-seed0": ("finished", 0.5), "000-seed1": ("finished", 0.5)}, weight=[1.0])
    drawn = []
    monkeypatch.setattr(report_plots, "write_figure", lambda path, figure: drawn.append(figure))
    report_plots.curves(plan, ranked(plan, trials), tmp_path / "curves.png")
    first, second = drawn[0].axes[0].lines
    assert list(first.get_ydata()) == list(second.get_ydata())
    assert first.get_marker() != second.get_marker()


def test_a_line_for_an_epoch_has_that_epochs_value(tmp_path):
    """Beside what the run would deploy, where that is of another epoch."""
    plan, (trial,) = imagined(tmp_path, {"000-seed0": ("finished", 0.5)}, weight=[1.0])
    plan.score = lambda trial: trial.score("held_out/top1", selects_best=True)
    trial.end, trial.reports = None, [{"epoch": 1, "held_out/top1": 0.5}]
    view = SweepView(plan)
    assert view.line({"event": "report"}, trial) == "000-seed0: epoch 1, held_out/top1 50.00%"
    trial.reports.append({"epoch": 2, "held_out/top1": 0.25})
    told = "held_out/top1 25.00% (best weights: 50.00%)"
    assert view.line({"event": "report"}, trial) == f"000-seed0: epoch 2, {told}"
    trial.end = "finished"
    assert view.line({"event": "end"}, trial) == f"000-seed0: finished, {told}"


@pytest.mark.parametrize("name", ["val/mAP", "val/agreement", "val/knn_top1"])
def test_the_table_has_what_the_validation_set_measures(name, tmp_path):
    """Of images without labels, and of a teacher without a head, its column was empty."""
    plan, trials = imagined(tmp_path, {"000-seed0": ("finished", 0.5)}, weight=[1.0])
    trials[0].result = {"metrics": {name: 0.25}}
    results = ranked(plan, trials)
    assert validation_rate(results) == name
    assert validation_text(results[0], name) == "25.00%"

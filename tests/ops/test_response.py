"""What the figures of a search show: the same whether a sweep draws them at its end, or the review page later."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from cluster.sweep.space import label
from cluster.sweep.tracking import POINT, TRIAL
from ops.history import Run
from ops.response import ScoredPoint, best_means, heat_map, heat_maps, is_logarithmic, response
from ops.review import figures
from ops.review.sweeps import scored_points
from ops.sweep.plots import plots
from ops.sweep.report import ranked
from tests.ops.sweep.conftest import imagined

CAPTION = "Mean over seeds, then the best over layers."


def point(scores: list[float], reached: Sequence[float] = (), failed: int = 0, **values: Any) -> ScoredPoint:
    return ScoredPoint(point=values, scores=scores, reached=reached, num_runs=len(scores) + len(reached) + failed)


def two_choices_of_layers(scores: list[list[float]]) -> list[ScoredPoint]:
    """A grid of two temperatures and two weights, at each of which the choices of layers scored as given."""
    return [
        point(of_seeds, temperature=t, weight=w, layers=choice)
        for t in (1.0, 4.0)
        for w in (0.1, 1.0)
        for choice, of_seeds in zip("ab", scores, strict=True)
    ]


def test_a_cell_is_the_best_over_what_else_is_searched():
    """Two choices of layers, 0.9 and 0.1: a pair of values can reach 0.9, not the 0.5 that nothing has reached."""
    (shown,) = heat_maps(two_choices_of_layers([[0.9], [0.1]]), ["temperature", "weight"], "max")
    assert shown.cells == [[0.9, 0.9], [0.9, 0.9]]
    assert (shown.columns, shown.rows, shown.caption) == ([1.0, 4.0], [0.1, 1.0], CAPTION)


def test_seeds_are_averaged_first():
    """A choice with one lucky seed does not win by it."""
    points = two_choices_of_layers([[0.9, 0.1], [0.6, 0.6]])
    assert heat_map(points, "temperature", "weight", "max").cells == [[0.6, 0.6], [0.6, 0.6]]
    assert heat_map(points, "temperature", "weight", "min").cells == [[0.5, 0.5], [0.5, 0.5]]


def test_only_points_whose_every_seed_finished_are_compared():
    points = [
        point([0.9], [0.8], temperature=1.0, weight=0.1),
        point([0.5, 0.7], temperature=1.0, weight=1.0),
        point([0.9], failed=1, temperature=4.0, weight=0.1),
    ]
    assert best_means(points, ["temperature"], "max") == {(1.0,): pytest.approx(0.6)}
    shown = heat_map(points, "temperature", "weight", "max")
    assert shown.cells == [[None, None], [pytest.approx(0.6), None]]
    assert shown.caption == "Mean over seeds. Empty: no point there finished with every seed."


def test_a_response_has_every_run_and_a_line_of_the_best():
    points = [*two_choices_of_layers([[0.9], [0.1]]), point([], [0.3], temperature=8.0, weight=0.1, layers="a")]
    shown = response(points, "temperature", "max")
    assert sorted(shown.runs) == [(t, score) for t in (1.0, 4.0) for score in (0.1, 0.1, 0.9, 0.9)]
    assert shown.stopped == [(8.0, 0.3)]
    assert shown.best == [(1.0, 0.9), (4.0, 0.9)]
    assert shown.caption == (
        "A mark is a run; hollow: stopped early. The line is the mean over seeds, then the best over weight, layers."
    )


def test_no_line_joins_points_that_share_no_value():
    """Random points of two ranges; of one range alone, the line is the curve that was looked for."""
    both = [point([0.1 * n], temperature=1.0 + n, weight=0.1 * n) for n in range(5)]
    assert response(both, "temperature", "max").best == []
    assert response(both, "temperature", "max").caption == "A mark is a run."
    assert heat_maps(both, ["temperature", "weight"], "max") == []
    one = [point([0.1 * n], temperature=1.0 + n) for n in range(5)]
    assert [value for value, _ in response(one, "temperature", "max").best] == [1, 2, 3, 4, 5]


def of_mlflow(points: list[ScoredPoint]) -> list[Run]:
    """The runs of points as MLflow holds them: fields and axes as text."""
    runs = []
    for number, one in enumerate(points):
        fields = {
            "method.0.term": "kd",
            "method.0.temperature": str(one.point["temperature"]),
            "method.0.weight": str(one.point["weight"]),
            "method.0.pairs": str(one.point["layers"]),
        }
        ends = [("FINISHED", score) for score in one.scores] + [("KILLED", score) for score in one.reached]
        for seed, (status, score) in enumerate(ends):
            recipe = {"name": f"{number}-{seed}", "seed": str(seed), **fields}
            tags = {TRIAL: f"{number:03d}-seed{seed}"} | {f"{POINT}{axis}": label(v) for axis, v in one.point.items()}
            runs.append(Run(f"{number}-{seed}", "0", "r", status, seed, recipe, tags, {"held_out/top1": score}))
    return runs


def test_the_review_page_shows_what_the_sweep_shows(tmp_path):
    """One seed, two choices of layers of 0.9 and 0.1, from the runs in MLflow and from the sweep's own journal."""
    points = two_choices_of_layers([[0.9], [0.1]])
    ends = {f"{number:03d}-seed0": ("finished", one.scores[0]) for number, one in enumerate(points)}
    plan, trials = imagined(tmp_path, ends, temperature=[1.0, 4.0], weight=[0.1, 1.0], layers={"ranked": 2})
    results = ranked(plan, trials)
    (of_sweep,) = heat_maps(results, ["temperature", "weight"], "max")
    drawn = figures.responses("s", scored_points(of_mlflow(points), "held_out/top1"), "held_out/top1")
    (of_page,) = [figure for figure in drawn if "map" in figure.key]
    (trace,) = json.loads(of_page.json)["data"]
    assert trace["text"] == [["90.0%", "90.0%"], ["90.0%", "90.0%"]]
    assert trace["z"] == of_sweep.cells == [[0.9, 0.9], [0.9, 0.9]]
    assert of_page.note == "Mean over seeds, then the best over layers."
    assert of_sweep.caption == CAPTION
    assert tmp_path / "heat_temperature_weight.png" in plots(plan, results)


def test_stopped_runs_of_a_review_are_hollow_and_leave_their_cell_empty():
    points = [point([0.9], temperature=1.0, weight=w, layers="a") for w in (0.1, 1.0)]
    points += [point([0.8], [0.7], temperature=4.0, weight=w, layers="a") for w in (0.1, 1.0)]
    found = scored_points(of_mlflow(points), "held_out/top1")
    assert [one.whole for one in found] == [True, True, False, False]
    across, *_, grid = figures.responses("s", found, "held_out/top1")
    runs, stopped, best = json.loads(across.json)["data"]
    assert (stopped["marker"]["symbol"], stopped["x"], stopped["y"]) == ("circle-open", [4, 4], [0.7, 0.7])
    assert len(runs["x"]) == 4
    assert best["x"] == [1]
    assert json.loads(grid.json)["data"][0]["z"] == [[0.9, None], [0.9, None]]


def test_every_axis_of_a_random_search_is_shown():
    """Where no value comes twice, all columns go together, one to one: the sweep says what it has searched."""
    drawn = [point([0.1, 0.2], temperature=1 + n / 7, weight=n / 3, layers=f"late<{n}") for n in range(3)]
    assert [list(one.point) for one in scored_points(of_mlflow(drawn), "held_out/top1")] == [
        ["layers", "temperature", "weight"]
    ] * len(drawn)


def test_a_searched_field_is_shown_whole_and_by_its_term():
    """The tag has a few digits of a number, as people read it; the run's recipe has all."""
    tags = {f"{POINT}method.0.temperature": "1.143", f"{POINT}optimizer.lr": "0.1"}
    one, other = (
        replace(run, tags=run.tags | tags)
        for run in of_mlflow([point([0.5, 0.6], temperature=8 / 7, weight=1.0, layers="a")])
    )
    other = replace(
        other, recipe=other.recipe | {"method.0.temperature": "1.1429"}, tags=other.tags | {TRIAL: "001-seed0"}
    )
    found = [one.point for one in scored_points([one, other], "held_out/top1")]
    assert found == [{"kd.temperature": 8 / 7}, {"kd.temperature": 1.1429}]


def test_scales():
    assert is_logarithmic([1, 2, 8])
    assert not is_logarithmic([1, 7])
    assert not is_logarithmic([0, 1])

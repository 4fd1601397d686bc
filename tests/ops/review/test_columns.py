"""The columns of the review's tables: what a cell says, and when a column is there."""

from dataclasses import replace

import pytest

from ops.history import Group, Run
from ops.review.columns import Badge, Cell, recipe_columns, run_columns, table
from ops.review.groups import Row
from ops.review.seed_noise import Difference


def run(**metrics: float) -> Run:
    return Run("id", "0", "kd-0", "FINISHED", 0, {"seed": "7"}, {"method": "kd"}, metrics)


ROW = Row(
    key="g0",
    label="kd",
    group=Group((run(**{"val/agreement": 0.75, "model/parameters": 272474.0}),)),
    by_seed={"7": 0.5},
    score={"n": 2, "mean": 0.5, "stdev": 0.0125},
    gain=Difference(0.1, (-0.1, 0.3), "paired t"),
    flags=[],
)


def cells(row: Row, metric: str = "val/top1") -> dict[str, Cell]:
    """{column: its cell} of a table of one recipe."""
    made = table("recipes", recipe_columns(metric), [row])
    return {column.name: cell for column, cell in zip(made.columns, made.rows[0], strict=True)}


def test_a_recipe():
    found = cells(ROW)
    assert found["score"] == Cell("50.00%", 0.5, "± 1.25")
    assert found["gain"] == Cell("+10.00", 0.1, "[-10.00, +30.00]", [Badge("noise", "noise")])
    assert found["val/agreement"] == Cell("75.00%", 0.75)
    assert found["model/parameters"].text == "272,474"
    assert found["model/gmacs"] == Cell("")


def test_runs_that_were_set_aside_are_told():
    assert cells(ROW)["runs"] == Cell("2", 2)
    assert cells(replace(ROW, set_aside=3))["runs"] == Cell("2", 2, "3 set aside")


def test_a_score_that_is_no_rate_is_no_percentage():
    found = cells(ROW, "val/nll")
    assert found["score"] == Cell("0.5000", 0.5, "± 0.0125")
    assert found["gain"].text == "+0.1000"


def test_what_stands_out():
    flags = [f"train.field{n} 1, not 2" for n in range(5)]
    badges = cells(replace(ROW, flags=flags, gain=None))["recipe"].badges
    assert [badge.text for badge in badges] == [*(f"also differs: {flag}" for flag in flags[:3]), "and in 2 more"]
    assert badges[-1].title == "train.field3 1, not 2; train.field4 1, not 2"


@pytest.mark.parametrize(("metrics", "is_there"), [({}, False), ({"data/cache_bytes": 2.5e6}, True)])
def test_a_column_that_only_some_experiments_have(metrics, is_there):
    """Header and cells come from one list, so neither is there without the other."""
    found = cells(replace(ROW, group=Group((run(**metrics),))))
    assert ("data/cache_bytes" in found) is is_there
    assert not is_there or found["data/cache_bytes"] == Cell("2.5", 2.5e6)


def test_a_run():
    columns = run_columns("val/top1", {"id": "kd: temperature 4"}, {"id": "http://mlflow/runs/id"})
    made = table("runs", columns, [run(**{"val/top1": 0.5, "val/nll": 1.25})])
    assert [cell.text for cell in made.rows[0]] == [
        *("kd-0", "kd: temperature 4", "7", "finished"),
        *("50.00%", "1.2500", ""),
    ], "no run here has a top-5"
    assert "val/top5" in [column.name for column in table("runs", columns, [run(**{"val/top5": 0.9})]).columns]
    assert made.rows[0][0].link == "http://mlflow/runs/id"


@pytest.mark.parametrize(
    ("metric", "class_mean", "shown"),
    [
        ("val/top1", 0.25, ["val/top1", "val/class_mean_top1"]),
        ("val/top1", 0.5, ["val/top1"]),  # classes of equal size: it is top-1
        ("val/class_mean_top1", 0.25, ["val/class_mean_top1"]),
    ],
)
def test_the_mean_over_classes_of_a_run(metric, class_mean, shown):
    found = run(**{"val/top1": 0.5, "val/class_mean_top1": class_mean})
    columns = table("runs", run_columns(metric, {}, {"id": ""}), [found]).columns
    assert [column.name for column in columns if column.name.endswith("top1")] == shown

"""What the model card says of a run's metrics."""

from dataclasses import replace

import pytest

from cluster.tracking.folder import RunFolder
from ops.export import model_card
from ops.history import DECISION, Group, Run, grouped


@pytest.mark.parametrize(("class_mean", "shown"), [(0.25, ["top-1", "mean per-class accuracy"]), (0.5, ["top-1"])])
def test_the_mean_over_classes_is_told_where_it_is_not_top1(tmp_path, monkeypatch, class_mean, shown):
    RunFolder(tmp_path).write_result({"metrics": {"val/top1": 0.5, "val/class_mean_top1": class_mean, "val/nll": 1.0}})
    monkeypatch.setattr(model_card, "repetitions_in_mlflow", lambda *_: Group(()))
    rows, set_aside, stops = model_card.reported_metrics(tmp_path, parts=None)
    assert [(row["name"], row["value"]) for row in rows] == list(zip(shown, ["50.00%", "25.00%"], strict=False))
    assert (set_aside, stops) == (0, "")


@pytest.mark.parametrize(("status", "told"), [("FINISHED", "45.00% ± 7.07% (n = 2)"), ("KILLED", "-")])
def test_seeds_that_a_sweep_has_stopped_leave_no_spread(tmp_path, monkeypatch, status, told):
    """That of the others, its best, stood there."""
    RunFolder(tmp_path).write_result({"metrics": {"val/top1": 0.5}})
    one = Run("0", "0", "0", "FINISHED", 0.0, {"seed": "0"}, {}, {"val/top1": 0.5})
    other = replace(one, status=status, recipe={"seed": "1"}, tags={DECISION: "worse"}, metrics={"val/top1": 0.4})
    monkeypatch.setattr(model_card, "repetitions_in_mlflow", lambda *_: grouped([one, other])[0])
    rows, _, stops = model_card.reported_metrics(tmp_path, parts=None)
    assert [(row["value"], row["all"]) for row in rows] == [("50.00%", told)]
    assert stops == ("1 of 2 seeds stopped" if status == "KILLED" else "")

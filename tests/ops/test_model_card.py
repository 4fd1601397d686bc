"""What the model card says of a run's metrics."""

import pytest

from cluster.tracking.folder import RunFolder
from ops import model_card
from ops.history import Group


@pytest.mark.parametrize(("class_mean", "shown"), [(0.25, ["top-1", "mean per-class accuracy"]), (0.5, ["top-1"])])
def test_the_mean_over_classes_is_told_where_it_is_not_top1(tmp_path, monkeypatch, class_mean, shown):
    RunFolder(tmp_path).write_result({"metrics": {"val/top1": 0.5, "val/class_mean_top1": class_mean, "val/nll": 1.0}})
    monkeypatch.setattr(model_card, "repetitions_in_mlflow", lambda *_: Group(()))
    rows, set_aside = model_card.reported_metrics(tmp_path, parts=None)
    assert [(row["name"], row["value"]) for row in rows] == list(zip(shown, ["50.00%", "25.00%"], strict=False))
    assert set_aside == 0

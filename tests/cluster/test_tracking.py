"""Metrics: in the run's file at once, in MLflow from a thread, and an error of MLflow not lost in it."""

import time

import mlflow
import pytest

from cluster import tracking
from cluster.config import parse
from cluster.tracking import Tracker, open_run, read_metrics, tracking_uri


@pytest.fixture
def config(recipe):
    return parse(recipe())


def test_metrics_and_their_times(config):
    """Rows are in the file when the call returns, in MLflow after `close`, with the same steps and times."""
    run_id = open_run(config, "python -m ops train x")
    before = time.time()
    tracker = Tracker(config, run_id, first_step=0)
    for step in (1, 2):
        tracker.log(step, {"train/loss": 1 / step})
        assert read_metrics(tracker.path)[-1]["train/loss"] == 1 / step
    tracker.close()
    rows = read_metrics(config.run_dir / "metrics.jsonl")
    history = mlflow.MlflowClient(tracking_uri(config)).get_metric_history(run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(row["step"], row["train/loss"]) for row in rows]
    assert [one.timestamp for one in history] == [int(row["time"] * 1000) for row in rows]
    assert before <= rows[0]["time"] <= rows[1]["time"] <= time.time()


def test_continued_at_a_step(config):
    """What an attempt logged after its last checkpoint is taken out: it comes again. So is a line cut off."""
    run_id = open_run(config, "")
    path = config.run_dir / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}, "train/loss": 1.0}}\n' for step in (1, 2, 3)) + '{"step": 4, "tr')
    tracker = Tracker(config, run_id, first_step=2)
    tracker.log(3, {"train/loss": 0.5})
    tracker.close()
    assert [(row["step"], row["train/loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_an_error_of_mlflow_is_raised(config, monkeypatch):
    def fail(*_):
        raise OSError("the store is gone")

    tracker = Tracker(config, open_run(config, ""), first_step=0)
    monkeypatch.setattr(tracking.Ledger, "log", fail)
    tracker.log(1, {"train/loss": 1.0})
    with pytest.raises(OSError, match="the store is gone"):
        tracker.close()

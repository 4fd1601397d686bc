"""MLflow that is away for a while, or gone: no run waits for it, and in the end it has every step once."""

import re

import mlflow
import pytest

from cluster.recipe.reading import parse
from cluster.tracking import run as tracking
from cluster.tracking.delivery import deliver_all
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from kdcore.errors import Refused
from tests.cluster.tracking.logs import log, opened_log, points

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


def test_away_for_a_while(config, away):
    """Nothing waits, nothing is lost, and the order is kept."""
    run_log = opened_log(config)
    log(run_log, range(1, 4))
    away.on = True
    log(run_log, range(4, 8))
    away.on = False
    log(run_log, range(8, 10))
    run_log.close()
    assert points(config) == [(step, 1.0 + step) for step in range(1, 10)]


def test_away_at_the_end_and_delivered_later(config, away, tmp_path):
    """The run ends all the same; what is missing, its end included, is delivered by whoever comes next, once."""
    run_id = open_run(config, "")
    run_log = RunLog(config, first_step=0)
    away.on = True
    log(run_log, range(1, 6))
    run_log.close()
    RunFolder.of(config).claim(config)
    (config.run_dir / "first_batch.png").write_bytes(b"a picture")
    close_run(config, "FINISHED")
    assert points(config) == []
    assert RunFolder.of(config).outbox.read_text() == "FINISHED"
    with pytest.raises(Refused, match=r"does not answer \(no route\); the metrics of .* stay there"):
        deliver_all(config.run_dir.parent)
    away.on = False
    assert deliver_all(config.run_dir.parent) == ["run"]
    assert deliver_all(config.run_dir.parent) == []
    assert points(config) == [(step, 1.0 + step) for step in range(1, 6)]
    client = mlflow.MlflowClient(tracking_uri(config))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "first_batch.png" in {file.path for file in client.list_artifacts(run_id)}


def test_continued_after_a_kill(config, away):
    """The server has steps that the continuation takes again, and lacks others: it ends with every step once."""
    first = opened_log(config)
    log(first, range(1, 7))
    first.close()  # a kill after step 6; the last checkpoint is that of step 4
    again = opened_log(config, 4)
    log(again, range(5, 9))
    again.close()
    assert points(config) == [(step, 1.0 + step) for step in range(1, 9)]


def test_an_answer_that_is_lost(config, monkeypatch):
    """The server took a batch, the answer never came: sent again, it is kept once."""
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    real, failures = mlflow.MlflowClient.log_batch, [ConnectionError("reset"), ConnectionError("reset")]

    def lossy(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if kwargs.get("metrics") and failures:
            raise failures.pop()

    open_run(config, "")
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lossy)
    run_log = RunLog(config, first_step=0)
    log(run_log, range(1, 5))
    run_log.close()
    assert not failures
    assert points(config) == [(step, 1.0 + step) for step in range(1, 5)]


def test_a_run_that_is_deleted_while_it_trains(config, caplog):
    """It goes on to its end, says once how MLflow gets it back, and is delivered then."""
    run_id, folder = open_run(config, ""), RunFolder.of(config)
    folder.claim(config)
    client = mlflow.MlflowClient(tracking_uri(config))
    client.delete_run(run_id)
    run_log = RunLog(config, first_step=0)
    log(run_log, range(1, 4))
    run_log.close()
    told = f"restore the run there, by `mlflow runs restore --run-id {run_id}`; "
    assert [told + "training goes on" in line.getMessage() for line in caplog.records] == [True]
    close_run(config, "FINISHED")
    assert told + "the rest of run is kept in its folder: python -m ops deliver" in caplog.text
    with pytest.raises(Refused, match=re.escape(told)):
        deliver_all(config.run_dir.parent)
    assert folder.ended_as() == "FINISHED"
    client.restore_run(run_id)
    assert deliver_all(config.run_dir.parent) == ["run"]
    assert points(config) == [(step, 1.0 + step) for step in range(1, 4)]


def test_a_fault_of_a_tracker_ends_the_run(config, monkeypatch):
    """It is no refusal of a store, and is not hidden."""
    monkeypatch.setattr(MlflowTracker, "send", lambda self, rows: rows["no such key"])
    run_log = opened_log(config)
    log(run_log, range(1, 2))
    with pytest.raises(TypeError, match="list indices"):
        run_log.close()


@pytest.fixture
def elsewhere(recipe, monkeypatch):
    """A run whose server does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return parse(recipe(tracking__uri=NOBODY))


def test_a_new_run_is_refused_without_its_server(elsewhere):
    with pytest.raises(Refused, match=rf"the MLflow store {NOBODY} does not answer .*; start it, or correct"):
        open_run(elsewhere, "")
    assert not RunFolder.of(elsewhere).run_id.exists()


def test_a_continued_run_goes_on_without_its_server(elsewhere, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    elsewhere.run_dir.mkdir(parents=True)
    RunFolder.of(elsewhere).run_id.write_text("an-earlier-run")
    assert open_run(elsewhere, "") == "an-earlier-run"
    assert "does not answer; the metrics of run are kept" in caplog.text
    run_log = RunLog(elsewhere, first_step=0)
    log(run_log, range(1, 3))
    run_log.close()
    close_run(elsewhere, "FINISHED")
    assert [row["step"] for row in read_journal(elsewhere.run_dir / "metrics.jsonl")] == [1, 2]

"""A sweep that has ended: the same command shows it, and writes nothing a second time."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, call

import pytest

from cluster.sweep import tracking
from cluster.tracking.folder import RunFolder
from ops.sweep import command as sweep_command
from ops.sweep import report
from tests.ops.sweep.conftest import ENDS, imagined


@pytest.fixture
def run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """A function that runs a sweep of trials that have ended, and returns what was done: its runs, its end in MLflow.

    lost: a trial that was lost since.
    """
    plan, trials = imagined(tmp_path, ENDS, temperature=[1, 2], weight=[1.0, 0.1])
    plan.num_trials, plan.parent.output_dir, done = len(trials), str(tmp_path), []
    by_name = {trial.name: trial for trial in trials}
    record = SimpleNamespace(marking_interruption=nullcontext, close=lambda *args: done.append("recorded"))

    def run_trials(*args: object) -> SimpleNamespace:
        done.append("run")
        return SimpleNamespace(trials=by_name)

    for name, value in {
        "trials_so_far": lambda plan: by_name,
        "SweepRecord": lambda *args: record,
        "build_caches": lambda *args: None,
        "run_trials": run_trials,
        "plots": lambda *args: [],
        "mlflow_hint": lambda config: "",
    }.items():
        monkeypatch.setattr(sweep_command, name, value)
    monkeypatch.setattr(report, "best_recipe", lambda *args: None)

    def run(retry_failed: bool = False, lost: str = "") -> list[str]:
        done.clear()
        if lost:
            by_name[lost].end = "lost"
        results = sweep_command.run(plan, 1, "", 0.0, retry_failed)
        assert [result.number for result in results] == [2, 0, 1, 3]
        return list(done)

    return run


def test_it_is_shown_and_not_written_again(run_again, tmp_path, capsys):
    everything = ["run", "recorded"]
    assert run_again() == everything
    written = (tmp_path / "sweep.json").read_bytes()
    assert run_again() == []
    assert "best by held_out/top1" in capsys.readouterr().out
    assert run_again(retry_failed=True) == everything
    (tmp_path / "outbox").touch()  # MLflow has not heard of all of it
    assert run_again() == everything
    assert (tmp_path / "sweep.json").read_bytes() == written  # with the seconds of the session that has run it
    (tmp_path / "outbox").unlink()
    left = tmp_path / "s-000-seed0" / "outbox"  # a tracker has not heard of all of a trial
    left.parent.mkdir()
    left.touch()
    assert run_again() == everything
    left.unlink()
    (tmp_path / "sweep.json").write_text("[")
    assert run_again() == everything
    assert run_again() == []
    assert run_again(lost="003-seed0") == everything


def test_mlflow_is_away_when_a_sweep_ends(tmp_path, monkeypatch):
    """The sweep ends with its table, and the same command adds what MLflow lacks."""
    ends = []
    monkeypatch.setattr(tracking, "close_run", lambda config, status: ends.append(status))
    record, folder = object.__new__(tracking.SweepRecord), RunFolder(tmp_path)
    monkeypatch.setattr(tracking.RunFolder, "of", lambda config: folder)
    record.parent, record.run_id, record.client = None, "id", MagicMock()
    record.client.set_tag.side_effect = ConnectionError("no route")
    record.close([], {}, {"temperature": 1})
    assert (ends, folder.outbox.exists()) == (["FINISHED"], True)
    folder.outbox.unlink()
    record.client.set_tag.side_effect = None
    record.close([], {}, {"temperature": 1})
    assert not folder.outbox.exists()


def test_mlflow_is_away_when_a_sweep_goes_on(monkeypatch):
    client = MagicMock()
    client.log_dict.side_effect = ConnectionError("no route")
    monkeypatch.setattr("mlflow.MlflowClient", lambda uri: client)
    monkeypatch.setattr(tracking, "open_run", lambda *args: "id")
    monkeypatch.setattr(tracking, "tracking_uri", lambda config: "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "space_as_text", lambda sweep: {})
    assert tracking.SweepRecord(MagicMock(), MagicMock(), "sweep").run_id == "id"


@pytest.mark.parametrize(("known", "num_points"), [({}, 1), ({"sweep/best": 0.5}, 0), ({"sweep/best": 0.25}, 1)])
def test_the_best_score_is_one_point(known, num_points, monkeypatch):
    """Unless it has changed."""
    monkeypatch.setattr(tracking, "close_run", lambda *args: None)
    record = object.__new__(tracking.SweepRecord)
    record.parent, record.run_id, record.client = None, "id", MagicMock()
    record.client.get_run.return_value.data.metrics = known
    record.close([], {"sweep/best": 0.5})
    assert record.client.log_metric.mock_calls == [call("id", "sweep/best", 0.5)] * num_points

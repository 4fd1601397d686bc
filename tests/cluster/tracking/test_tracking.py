"""Metrics: in the run's file at once, and in every tracker in order and once."""

import time
from copy import copy
from typing import Any

import mlflow
import pytest
from PIL import Image

from cluster.recipe.reading import parse
from cluster.tracking import machine, tracker
from cluster.tracking.delivery import deliver_all, deliver_rest
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.machine import MachineSampler
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from cluster.tracking.tensorboard_tracker import TensorBoardTracker
from cluster.tracking.tracker import Courier, Tracker, trackers_of
from kdcore.errors import Refused
from tests.cluster.tracking.logs import log, opened_log, points


def test_metrics_and_their_times(config):
    """Rows are in the file when the call returns, in MLflow after `close`, with the same steps and times."""
    run_id = open_run(config, "python -m ops train x")
    before = time.time()
    run_log = RunLog(config, first_step=0)
    for step in (1, 2):
        run_log.log(step, {"train/loss": 1 / step})
        assert read_journal(run_log.folder.metrics)[-1]["train/loss"] == 1 / step
    run_log.close()
    rows = read_journal(config.run_dir / "metrics.jsonl")
    history = mlflow.MlflowClient(tracking_uri(config)).get_metric_history(run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [(row["step"], row["train/loss"]) for row in rows]
    assert [one.timestamp for one in history] == [int(row["time"] * 1000) for row in rows]
    assert before <= rows[0]["time"] <= rows[1]["time"] <= time.time()


def test_continued_at_a_step(config):
    """What an attempt logged after its last checkpoint is taken out: it comes again. So is a line cut off."""
    open_run(config, "")
    path = config.run_dir / "metrics.jsonl"
    path.write_text(
        "".join(f'{{"step": {s}, "time": {s}, "train/loss": 1.0}}\n' for s in (1, 2, 3)) + '{"step": 4, "tr'
    )
    run_log = RunLog(config, first_step=2)
    run_log.log(3, {"train/loss": 0.5})
    run_log.close()
    assert [(row["step"], row["train/loss"]) for row in read_journal(path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_what_was_measured_after_the_last_step_is_kept_once(config):
    """A run whose worker is lost after its last checkpoint validates once more, to the same numbers."""
    opened_log(config).log(2, {"val/top1": 0.5})
    run_log = RunLog(config, first_step=2)
    run_log.log(2, {"val/top1": 0.5})
    run_log.log(2, {"speed/seconds": 3.0})
    run_log.close()
    rows = read_journal(config.run_dir / "metrics.jsonl")
    assert [set(row) - {"time"} for row in rows] == [{"step", "val/top1"}, {"step", "speed/seconds"}]


def test_long_journals_go_in_several_requests(config, monkeypatch):
    monkeypatch.setattr(tracker, "VALUES_AT_ONCE", 10)
    open_run(config, "")
    (config.run_dir / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "time": {s}, "train/loss": {s}}}\n' for s in range(1, 51))
    )
    Courier(MlflowTracker(config)).deliver()
    assert points(config) == [(s, float(s)) for s in range(1, 51)]


def test_samples_of_the_machine(tmp_path, monkeypatch):
    """Numbered on over continuations, and named like MLflow's own."""
    from threading import Event

    monkeypatch.setattr(machine, "SAMPLE_SECONDS", 0.01)
    for _ in range(2):
        news = Event()
        sampler = MachineSampler(tmp_path / "system.jsonl", news)
        assert news.wait(10)
        sampler.close()
    rows = read_journal(tmp_path / "system.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= 2
    assert "system/cpu_utilization_percentage" in rows[0]


def tensorboard_scalars(config) -> dict[str, list[tuple[int, float]]]:
    """{metric: [(step, value), ...]} of a run's event files, read as TensorBoard's own records."""
    from tensorboardX.proto.event_pb2 import Event as Record

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((config.run_dir / "tensorboard").glob("events.*")):
        content = path.read_bytes()
        while content:  # length (8 bytes), its checksum (4), the record, its checksum (4)
            length = int.from_bytes(content[:8], "little")
            record = Record.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in record.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((record.step, value.simple_value))
    return found


def test_tensorboard_beside_mlflow(recipe, store, away):
    """Both have every step once: over a continuation, and while MLflow is away."""
    config = parse(recipe(tracking__uri=store, tracking__also=["tensorboard"]))
    first = opened_log(config)
    log(first, range(1, 7))
    first.close()
    away.on = True
    again = opened_log(config, 4)
    log(again, range(5, 9))
    again.log(9, {"train/loss": float("nan")})
    again.close()
    assert tensorboard_scalars(config)["train/loss"] == [(step, 1.0 + step) for step in range(1, 9)]
    away.on = False
    RunFolder.of(config).claim(config)
    close_run(config, "FINISHED")
    assert points(config) == [(step, 1.0 + step) for step in range(1, 9)]
    assert tensorboard_scalars(config)["train/loss"] == [(step, 1.0 + step) for step in range(1, 9)]


def notebook(monkeypatch) -> dict[str, Any]:
    """Register a tracker as a plug-in does; return what it is given. It is away while that has "away"."""
    monkeypatch.setattr(Tracker, "registry", copy(Tracker.registry))
    seen: dict[str, Any] = {"rows": [], "files": []}

    class Notebook(Tracker):
        name = "notebook"

        def open(self, command, tags):
            seen["command"] = command

        def send(self, rows):
            if "away" in seen:
                raise ConnectionError("no route")
            seen["rows"] += rows

        def send_file(self, path):
            seen["files"].append(path.name)

        def missing_files(self):
            return []

        def end(self, status):
            seen["status"] = status

        def is_away(self, error):
            return isinstance(error, ConnectionError)

    return seen


def test_a_tracker_of_ones_own(recipe, store, monkeypatch):
    """A subclass with a name is one file: it is handed the run's lines, files and end, and no other place knows it."""
    seen = notebook(monkeypatch)
    config = parse(recipe(tracking__uri=store, tracking__also=["notebook"]))
    open_run(config, "python -m ops train x")
    run_log = RunLog(config, 0)
    log(run_log, range(1, 4))
    picture = config.run_dir / "first_batch.png"
    picture.write_bytes(b"a picture")
    run_log.add_file(picture)
    run_log.close()
    close_run(config, "FINISHED")
    assert [row["step"] for row in seen.pop("rows")] == [1, 2, 3]
    assert seen == {"files": ["first_batch.png"], "command": "python -m ops train x", "status": "FINISHED"}


def test_a_tracker_that_is_away_keeps_no_other_back(recipe, store, away, monkeypatch, caplog):
    """It is named, with the command that delivers to it: `deliver` says that it cannot, as the plug-in is not there."""
    seen = notebook(monkeypatch)
    config = parse(recipe(tracking__uri=store, tracking__also=["notebook"]))
    run_id, folder = open_run(config, ""), RunFolder.of(config)
    folder.claim(config)
    run_log = RunLog(config, 0)
    seen["away"] = True
    log(run_log, range(1, 4))
    run_log.close()
    close_run(config, "FINISHED")
    assert mlflow.MlflowClient(store).get_run(run_id).info.status == "FINISHED"
    told = (
        "the tracker notebook does not answer (no route); the rest of run is kept in its folder: run the same command"
    )
    assert told in caplog.text
    assert store not in caplog.text
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "registry", {"mlflow": MlflowTracker, "tensorboard": TensorBoardTracker})
        with pytest.raises(Refused, match="of which a plug-in brings notebook; run the same command again"):
            deliver_all(config.run_dir.parent)
    assert (seen["rows"], folder.ended_as()) == ([], "FINISHED")
    seen.pop("away")
    deliver_rest(config)
    assert ([row["step"] for row in seen["rows"]], seen["status"]) == ([1, 2, 3], "FINISHED")
    assert not folder.outbox.exists()


def test_an_unknown_tracker_is_refused(recipe, store):
    with pytest.raises(Refused, match=r"tracking.also: unknown tracker 'tensorbord'; did you mean tensorboard\?"):
        trackers_of(parse(recipe(tracking__uri=store, tracking__also=["tensorbord"])))


def test_pictures_in_tensorboard(recipe, store):
    config = parse(recipe(tracking__uri=store, tracking__also=["tensorboard"]))
    run_log = opened_log(config)
    Image.new("RGB", (8, 6)).save(RunFolder.of(config).first_batch)
    assert TensorBoardTracker(config).missing_files() == [RunFolder.of(config).first_batch]
    run_log.add_file(RunFolder.of(config).first_batch)
    run_log.close()
    (events,) = (config.run_dir / "tensorboard").glob("events.*")
    assert b"PNG" in events.read_bytes()

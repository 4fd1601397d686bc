"""Metrics: in the run's file at once; in MLflow in order and once, whether it is there, away for a while, or gone."""

import socket
import time
from copy import copy
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from cluster.recipe import parse
from cluster.tracking import machine, tracker
from cluster.tracking import run as tracking
from cluster.tracking.delivery import deliver_all
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.machine import MachineSampler
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from cluster.tracking.tensorboard_tracker import TensorBoardTracker
from cluster.tracking.tracker import Courier, Tracker, trackers_of
from kdcore.errors import Refused
from pipelines.files import write_json

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture
def away(monkeypatch):
    """A switch: while `away.on`, every request to MLflow fails as it does without a network."""

    class Switch:
        on = False

    switch = Switch()
    send = MlflowTracker.send

    def maybe(self, rows):
        if switch.on:
            raise ConnectionError("no route")
        send(self, rows)

    monkeypatch.setattr(MlflowTracker, "send", maybe)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    return switch


def points(config, name: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of a metric in MLflow, in the order in which they came."""
    run_id = RunFolder.of(config).run_id.read_text()
    return [(p.step, p.value) for p in mlflow.MlflowClient(tracking_uri(config)).get_metric_history(run_id, name)]


def log(run_log: RunLog, steps: range, value: float = 1.0) -> None:
    for step in steps:
        run_log.log(step, {"train/loss": value + step})


def opened_log(config, first_step: int = 0) -> RunLog:
    """The log of a run that is open in its trackers."""
    open_run(config, "")
    return RunLog(config, first_step)


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


def test_an_error_that_waiting_does_not_help(config):
    """A run that somebody deleted: said at the end at the latest."""
    run_id = open_run(config, "")
    mlflow.MlflowClient(tracking_uri(config)).delete_run(run_id)
    run_log = RunLog(config, first_step=0)
    run_log.log(1, {"train/loss": 1.0})
    with pytest.raises(MlflowException, match="active"):
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


def test_how_a_run_is_described(recipe, store):
    method = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 0.9, "temperature": 4.0}]
    about = {"title": "A test.", "expected": {"top1": 71.7, "stdev": 0.05}, "differs": ["it is small"]}
    config = parse(
        recipe(teacher={"model": "cifar_resnet8", "random": True}, method=method, tracking__uri=store, about=about)
    )
    run_id = open_run(config, "python -m ops train x.yaml", {"sweep": "temperatures"})
    run = mlflow.MlflowClient(tracking_uri(config)).get_run(run_id)
    assert run.info.run_name == "run: ce+kd, cifar_resnet8 > cifar_resnet8"
    expected = {"run": "run", "method": "ce+kd", "pair": "cifar_resnet8 > cifar_resnet8", "sweep": "temperatures"}
    assert run.data.tags.items() >= expected.items()
    page = run.data.tags["mlflow.note.content"]
    assert page == ("A test.\n\nPublished: 71.70 ± 0.05 top-1\n\nRun again with\n\n    python -m ops train x.yaml")
    assert run.data.params["method.1.temperature"] == "4.0"
    assert [key for key in run.data.params if key.startswith("about")] == []


def test_files_lie_in_the_output_folder(recipe, store):
    """Also where the recipe names a database: MLflow itself would put them into the working directory."""
    config = parse(recipe(tracking__uri=store, tracking__experiment="another"))
    open_run(config, "")
    experiment = mlflow.MlflowClient(store).get_experiment_by_name("another")
    assert experiment.artifact_location == (config.run_dir.parent / "artifacts").as_uri()


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


def test_a_tracker_of_ones_own(recipe, store, monkeypatch):
    """A subclass with a name is one file: it is handed the run's lines, files and end, and no other place knows it."""
    monkeypatch.setattr(Tracker, "registry", copy(Tracker.registry))
    seen: dict[str, Any] = {"rows": [], "files": []}

    class Notebook(Tracker):
        name = "notebook"

        def open(self, command, tags):
            seen["command"] = command

        def send(self, rows):
            seen["rows"] += rows

        def send_file(self, path):
            seen["files"].append(path.name)

        def missing_files(self):
            return []

        def end(self, status):
            seen["status"] = status

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


def test_why_a_run_failed(config):
    """In its folder and in MLflow; gone once the run has come to its end."""
    run_id = open_run(config, "")
    RunFolder.of(config).error.write_text("rank 1 on 10.0.0.9: its node was lost")
    close_run(config, "FAILED")
    client = mlflow.MlflowClient(tracking_uri(config))
    assert client.get_run(run_id).data.tags["error"] == "rank 1 on 10.0.0.9: its node was lost"
    open_run(config, "")
    close_run(config, "FINISHED")
    assert "error" not in client.get_run(run_id).data.tags


def test_the_student_is_a_model(recipe, store):
    """With its accuracy at every validation; made once, whoever closes the run. MLflow's models have no dots."""
    config = parse(recipe(name="kd-t1.5", tracking__uri=store))
    run_id = open_run(config, "")
    run_log = RunLog(config, 0)
    for step, top1 in ((3, 0.5), (6, 0.75)):
        run_log.log(step, {"val/top1": top1})
        run_log.log(step, {"train/loss": 1.0})
    run_log.close()
    RunFolder.of(config).weights.touch()
    close_run(config, "FINISHED")
    close_run(config, "FINISHED")
    client = mlflow.MlflowClient(tracking_uri(config))
    experiment = client.get_run(run_id).info.experiment_id
    (model,) = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert (model.name, model.source_run_id, model.model_type) == ("kd-t1-5", run_id, "student")
    assert {(one.step, one.value) for one in model.metrics if one.key == "val/top1"} == {(3, 0.5), (6, 0.75)}
    assert points(config, "val/top1") == [(3, 0.5), (6, 0.75)]


def test_what_trains_no_student_has_no_model(recipe, store):
    """A sweep's own run, which is the parent of its trials'."""
    config = parse(recipe(name="sweep", tracking__uri=store))
    run_id = open_run(config, "")
    close_run(config, "FINISHED")
    client = mlflow.MlflowClient(tracking_uri(config))
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert not client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'")


def test_a_validation_that_comes_again_is_one_point(config):
    """Measured at step 30, killed, continued from step 20 and measured again: it is the run's once, and its model's."""
    for first_step in (0, 20):
        run_log = opened_log(config, first_step)
        for step in range(first_step + 10, first_step + 31, 10):
            run_log.log(step, {"val/top1": step / 100})
        run_log.close()
    RunFolder.of(config).weights.touch()
    close_run(config, "FINISHED")
    measured = [(step, step / 100) for step in (10, 20, 30, 40, 50)]
    assert points(config, "val/top1") == measured
    client = mlflow.MlflowClient(tracking_uri(config))
    run = client.get_run(RunFolder.of(config).run_id.read_text())
    model = client.get_logged_model(run.data.tags["student.model"])
    assert [(one.step, one.value) for one in model.metrics] == measured


def test_the_images_are_an_input(config):
    """By the digest of their index; who runs it, and where, are tags."""
    write_json(RunFolder.of(config).facts, {"data": "ab" * 32})
    run = mlflow.MlflowClient(tracking_uri(config)).get_run(open_run(config, ""))
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.digest, found.dataset.name) == ("ab" * 16, config.data.name)
    assert run.data.tags["mlflow.source.type"] == "LOCAL"
    assert run.data.tags["host"] == socket.gethostname()

"""Metrics: in the run's file at once; in MLflow in order and once, whether it is there, away for a while, or gone."""

import time

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from cluster.recipe import parse
from cluster.tracking import delivery, machine
from cluster.tracking import run as tracking
from cluster.tracking.delivery import OUTBOX, RUN_ID, Courier, deliver_all
from cluster.tracking.journal import read_metrics
from cluster.tracking.machine import Machine
from cluster.tracking.run import Tracker, close_run, flat, open_run, tracking_uri
from kdcore.errors import Refused

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> str:
    """One store for all: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    client.create_experiment("stillhouse", artifact_location=(folder / "artifacts").as_uri())
    return client.tracking_uri


@pytest.fixture
def config(recipe, store):
    return parse(recipe(tracking__uri=store))


@pytest.fixture
def away(monkeypatch):
    """A switch: while `away.on`, every request to MLflow fails as it does without a network."""

    class Switch:
        on = False

    switch = Switch()
    send = Courier.send

    def maybe(self, rows):
        if switch.on:
            raise ConnectionError("no route")
        send(self, rows)

    monkeypatch.setattr(Courier, "send", maybe)
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    return switch


def points(config, name: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value) of a metric in MLflow, in the order in which they came."""
    run_id = (config.run_dir / RUN_ID).read_text()
    return [(p.step, p.value) for p in mlflow.MlflowClient(tracking_uri(config)).get_metric_history(run_id, name)]


def log(tracker: Tracker, steps: range, value: float = 1.0) -> None:
    for step in steps:
        tracker.log(step, {"train/loss": value + step})


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
    path.write_text(
        "".join(f'{{"step": {s}, "time": {s}, "train/loss": 1.0}}\n' for s in (1, 2, 3)) + '{"step": 4, "tr'
    )
    tracker = Tracker(config, run_id, first_step=2)
    tracker.log(3, {"train/loss": 0.5})
    tracker.close()
    assert [(row["step"], row["train/loss"]) for row in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 0.5)]


def test_away_for_a_while(config, away):
    """Nothing waits, nothing is lost, and the order is kept."""
    tracker = Tracker(config, open_run(config, ""), first_step=0)
    log(tracker, range(1, 4))
    away.on = True
    log(tracker, range(4, 8))
    away.on = False
    log(tracker, range(8, 10))
    tracker.close()
    assert points(config) == [(step, 1.0 + step) for step in range(1, 10)]


def test_away_at_the_end_and_delivered_later(config, away, tmp_path):
    """The run ends all the same; what is missing, its end included, is delivered by whoever comes next, once."""
    run_id = open_run(config, "")
    tracker = Tracker(config, run_id, first_step=0)
    away.on = True
    log(tracker, range(1, 6))
    tracker.close()
    (config.run_dir / "recipe.yaml").write_text(tracking.to_yaml(config))
    (config.run_dir / "curves.png").write_bytes(b"a picture")
    close_run(config, run_id, "FINISHED")
    assert points(config) == []
    assert (config.run_dir / OUTBOX).read_text() == "FINISHED"
    with pytest.raises(Refused, match=r"does not answer \(no route\); the metrics of .* stay there"):
        deliver_all(config.run_dir.parent)
    away.on = False
    assert deliver_all(config.run_dir.parent) == ["run"]
    assert deliver_all(config.run_dir.parent) == []
    assert points(config) == [(step, 1.0 + step) for step in range(1, 6)]
    client = mlflow.MlflowClient(tracking_uri(config))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert "curves.png" in {file.path for file in client.list_artifacts(run_id)}


def test_continued_after_a_kill(config, away):
    """The server has steps that the continuation takes again, and lacks others: it ends with every step once."""
    run_id = open_run(config, "")
    tracker = Tracker(config, run_id, first_step=0)
    log(tracker, range(1, 7))
    tracker.close()  # a kill after step 6; the last checkpoint is that of step 4
    again = Tracker(config, open_run(config, ""), first_step=4)
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

    run_id = open_run(config, "")
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lossy)
    tracker = Tracker(config, run_id, first_step=0)
    log(tracker, range(1, 5))
    tracker.close()
    assert not failures
    assert points(config) == [(step, 1.0 + step) for step in range(1, 5)]


def test_an_error_that_waiting_does_not_help(config):
    """A run that somebody deleted: said at the end at the latest."""
    run_id = open_run(config, "")
    mlflow.MlflowClient(tracking_uri(config)).delete_run(run_id)
    tracker = Tracker(config, run_id, first_step=0)
    tracker.log(1, {"train/loss": 1.0})
    with pytest.raises(MlflowException, match="active"):
        tracker.close()


@pytest.fixture
def elsewhere(recipe, monkeypatch):
    """A run whose server does not answer."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return parse(recipe(tracking__uri=NOBODY))


def test_a_new_run_is_refused_without_its_server(elsewhere):
    with pytest.raises(Refused, match=rf"the MLflow store {NOBODY} does not answer .*; start it, or correct"):
        open_run(elsewhere, "")
    assert not (elsewhere.run_dir / RUN_ID).exists()


def test_a_continued_run_goes_on_without_its_server(elsewhere, monkeypatch, caplog):
    monkeypatch.setattr(tracking, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "PATIENCE_SECONDS", 0.05)
    elsewhere.run_dir.mkdir(parents=True)
    (elsewhere.run_dir / RUN_ID).write_text("an-earlier-run")
    assert open_run(elsewhere, "") == "an-earlier-run"
    assert "does not answer; the metrics of run are kept" in caplog.text
    tracker = Tracker(elsewhere, "an-earlier-run", first_step=0)
    log(tracker, range(1, 3))
    tracker.close()
    close_run(elsewhere, "an-earlier-run", "FINISHED")
    assert [row["step"] for row in read_metrics(elsewhere.run_dir / "metrics.jsonl")] == [1, 2]


def test_how_a_run_is_described(recipe, store):
    method = [{"term": "ce", "weight": 1.0}, {"term": "kd", "weight": 0.9, "temperature": 4.0}]
    about = {"title": "A test.", "expected": {"top1": 71.7, "stdev": 0.05}, "differs": ["it is small"]}
    config = parse(recipe(teacher={"model": "cifar_resnet8"}, method=method, tracking__uri=store, about=about))
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


def test_flattened_lists():
    assert flat({"a": {"b": 1}, "c": [{"d": 2}, {"d": 3}], "e": [4, 5]}) == {
        "a.b": 1,
        "c.0.d": 2,
        "c.1.d": 3,
        "e": [4, 5],
    }


def test_long_journals_go_in_several_requests(config, monkeypatch):
    monkeypatch.setattr(delivery, "VALUES_AT_ONCE", 10)
    run_id = open_run(config, "")
    (config.run_dir / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "time": {s}, "train/loss": {s}}}\n' for s in range(1, 51))
    )
    Courier(config, run_id).deliver()
    assert points(config) == [(s, float(s)) for s in range(1, 51)]


def test_samples_of_the_machine(tmp_path, monkeypatch):
    """Numbered on over continuations, and named like MLflow's own."""
    from threading import Event

    monkeypatch.setattr(machine, "SAMPLE_SECONDS", 0.01)
    for _ in range(2):
        news = Event()
        sampler = Machine(tmp_path / "system.jsonl", news)
        assert news.wait(10)
        sampler.close()
    rows = read_metrics(tmp_path / "system.jsonl")
    assert [row["step"] for row in rows] == list(range(len(rows)))
    assert len(rows) >= 2
    assert "system/cpu_utilization_percentage" in rows[0]

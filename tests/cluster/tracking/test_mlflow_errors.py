"""What MLflow's errors mean: of a store that is a file, of a server of files, of a server that is older."""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from cluster.recipe.reading import parse
from cluster.tracking.delivery import deliver_all
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import is_away
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from cluster.training.launch import launch
from kdcore.errors import Refused

DELETED = {
    "": r"mlflow.db cannot be written: .* deleted or replaced.*; restart Python",
    "mlflow.db": r"mlflow.db, which has the run of .*/run, is missing; put it back, or .* or delete .*/mlflow_run_id",
}


@pytest.mark.parametrize("gone", DELETED)
def test_a_file_that_was_deleted_under_mlflow(recipe, gone):
    """MLflow keeps it open, and writes nothing any more of a new run; one that goes on is refused before."""
    config = parse(recipe(scaling__num_workers=0))
    open_run(config, "train")
    close_run(config, "KILLED")
    place = Path(config.output_dir) / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(Refused, match=DELETED[gone]):
        open_run(config, "train")


def test_a_start_that_the_store_refuses_takes_no_name(recipe):
    """The next one, of a mended recipe, was refused as another run of that name."""
    config = parse(recipe(scaling__num_workers=0, tracking__uri="htp://host:5000", train__max_steps=1))
    with pytest.raises(
        Refused, match=r"the MLflow store htp://host:5000 is of a kind that MLflow does not know; write"
    ):
        launch(config)
    folder = RunFolder.of(config)
    assert (folder.state(), folder.read_store()) == ("new", None)
    assert launch(parse(recipe(scaling__num_workers=0, train__max_steps=2))).steps == 2


@pytest.fixture
def own(recipe):
    """A recipe whose run has been opened in the store of its output folder, and that store's file."""
    config = parse(recipe(scaling__num_workers=0))
    open_run(config, "train")
    close_run(config, "KILLED")
    return config, Path(config.output_dir) / "mlflow.db"


def test_a_store_that_is_read_only(own, monkeypatch, caplog):
    """Refused before a step is taken, and before MLflow, which logs what it meets with a traceback, is asked."""
    (config, path), access = own, os.access
    monkeypatch.setattr(os, "access", lambda place, mode: Path(place) != path and access(place, mode))
    new = config.model_copy(update={"name": "new"})
    said = rf"sqlite:///{path} cannot be written, as {path} is read-only here; grant write access"
    for start in (launch, lambda run: open_run(run, "train")):
        for run in (new, config):
            with pytest.raises(Refused, match=said):
                start(run)
    assert RunFolder.of(new).state() == "new"
    assert not caplog.records


def test_a_store_that_becomes_read_only(own, caplog, capfd):
    """It is not waited for as a server is, and MLflow's traceback is not shown before the one line."""
    config, path = own
    tracker = MlflowTracker(config)
    tracker.client.get_run(tracker.run_id)
    path.unlink()  # SQLite says the same of a file that was deleted while it was open
    with pytest.raises(MlflowException, match="readonly database") as told:
        tracker.client.set_tag(tracker.run_id, "a", "b")
    assert not tracker.is_away(told.value)
    assert not caplog.records
    assert not capfd.readouterr().err


def test_a_disk_that_is_read_only_is_not_waited_for(config, monkeypatch, caplog):
    """The student, refused by it, is named with its place; training goes on, and a new run is refused."""
    error = OSError(errno.EROFS, "Read-only file system", "/closed/student.safetensors")
    assert not is_away(error)

    take = mlflow.MlflowClient.log_artifact

    def refuse(self, run_id: str, path: str, *more: object) -> None:
        if path.endswith(("student.safetensors", "packages.txt")):
            raise error
        take(self, run_id, path, *more)

    said = "/closed/student.safetensors cannot be written (Read-only file system); give a place that can be written to"
    run_id, new = open_run(config, ""), config.model_copy(update={"name": "new"})
    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    assert finished_run(config)[0] == run_id
    close_run(config, "FINISHED")
    assert f"rejects student.safetensors: {said}" in caplog.text
    with pytest.raises(Refused, match=re.escape(said)):
        open_run(new, "train")


class Answer(OSError):
    """What MLflow raises where a server of files answers with a status: requests' HTTPError is such an error."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error")
        self.response = SimpleNamespace(status_code=status)


def test_which_answers_waiting_helps():
    assert [status for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 507) if is_away(Answer(status))] == [
        *(408, 429, 500, 503, 507)
    ]
    assert is_away(ConnectionError("no route"))


def finished_run(config) -> tuple[str, RunFolder]:
    """A run that has ended with a student, as far as its log goes; its id in MLflow, and its folder."""
    run_id, folder = open_run(config, ""), RunFolder.of(config)
    folder.claim(config)
    run_log = RunLog(config, first_step=0)
    run_log.log(1, {"train/loss": 1.0})
    folder.weights.write_bytes(b"weights")
    run_log.add_file(folder.weights)
    run_log.close()
    return run_id, folder


def test_a_file_that_is_too_large_for_what_stands_before_the_server(config, monkeypatch, caplog):
    """The run ends, in MLflow too, and says what to do; `deliver` sends the file once it is taken."""

    take = mlflow.MlflowClient.log_artifact

    def take_small_ones(self, run_id: str, path: str, *more: object) -> None:
        if path.endswith(".safetensors"):
            raise Answer(413)
        take(self, run_id, path, *more)

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_artifact", take_small_ones)
        run_id, folder = finished_run(config)
        close_run(config, "FINISHED")
        said = r"rejects student.safetensors: HTTP status 413 for 7 bytes; raise the limit of .* client_max_body_size"
        assert "student.safetensors: HTTP status 413 for 7 bytes; raise the limit" in caplog.text
        assert "python -m ops deliver" in caplog.text
        with pytest.raises(Refused, match=said):
            deliver_all(folder.path.parent)
    client = mlflow.MlflowClient(tracking_uri(config))
    assert client.get_run(run_id).info.status == "FINISHED"
    assert deliver_all(folder.path.parent) == ["run"]
    assert "student.safetensors" in {file.path for file in client.list_artifacts(run_id)}


def test_a_server_without_models_of_runs(config, monkeypatch, caplog):
    """As MLflow 2 is: the run is complete there all the same."""

    def unknown(*_: object, **__: object) -> None:
        raise MlflowException("API request failed with error code 404", error_code=ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(mlflow.MlflowClient, "search_logged_models", unknown)
    run_id, folder = finished_run(config)
    close_run(config, "FINISHED")
    assert mlflow.MlflowClient(tracking_uri(config)).get_run(run_id).info.status == "FINISHED"
    assert not folder.outbox.exists()
    assert "lists no students as models, which needs MLflow 3" in caplog.text

"""What MLflow's errors mean: of a store that is a file, of a server of files, of a server that is older."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND

from cluster.recipe import parse
from cluster.tracking.delivery import deliver_all
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import is_away
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from kdcore.errors import Refused


@pytest.mark.parametrize("gone", ["", "mlflow.db"])
def test_a_file_that_was_deleted_under_mlflow(recipe, gone):
    """MLflow keeps it open, and writes nothing any more: of a new run, and of one that goes on."""
    config = parse(recipe(scaling__num_workers=0))
    open_run(config, "train")
    close_run(config, "KILLED")
    place = Path(config.output_dir) / gone
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(Refused, match=r"mlflow.db cannot be written: .* deleted or replaced.*; restart Python"):
        open_run(config, "train")


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

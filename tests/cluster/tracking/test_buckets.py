"""MLflow's files in a bucket of S3: they arrive, and what is wrong there is one line."""

from __future__ import annotations

import sys

import boto3
import mlflow
import pytest

from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import MlflowTracker, tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from kdcore.errors import Refused
from tests.pipelines.stores import s3_server, use_test_credentials


@pytest.fixture
def endpoint(monkeypatch):
    """A server of S3 with one bucket, `runs`; this process signs its requests as that likes it."""
    use_test_credentials(monkeypatch)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as port:
        address = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="runs")
        yield address


@pytest.fixture
def recorded(recipe, tmp_path):
    """A function that gives a run whose experiment has its files in a bucket."""

    def make(bucket: str):
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        mlflow.MlflowClient(uri).create_experiment(bucket, artifact_location=f"s3://{bucket}/artifacts")
        return parse(recipe(tracking__uri=uri, tracking__experiment=bucket))

    return make


def test_files_arrive(endpoint, recorded):
    """The recipe at the beginning, what the run's log is given later, and all of it readable."""
    config = recorded("runs")
    open_run(config, "")
    run_log, folder = RunLog(config, 0), RunFolder.of(config)
    run_log.log(1, {"train/loss": 1.0})
    folder.weights.write_bytes(b"weights")
    run_log.add_file(folder.weights)
    run_log.close()
    close_run(config, "FINISHED")
    client = mlflow.MlflowClient(tracking_uri(config))
    there = {artifact.path for artifact in client.list_artifacts(folder.run_id.read_text())}
    assert {"recipe.yaml", "student.safetensors"} <= there


def test_no_such_bucket(endpoint, recorded):
    with pytest.raises(
        Refused, match=r"keeps files in a bucket of S3, which refuses \(.*; set AWS_ACCESS_KEY_ID"
    ) as told:
        open_run(recorded("nowhere"), "")
    assert "\n" not in str(told.value)


def test_without_boto3(endpoint, recorded, monkeypatch):
    """Before anything is trained, with what to install."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(Refused, match=r"for which boto3 is missing; install stillhouse\[s3\] here and on every node"):
        open_run(recorded("runs"), "")


def test_a_bucket_that_is_away_is_waited_for(endpoint, recorded, monkeypatch):
    """As a server of MLflow is: nothing of a run is lost for it."""
    config = recorded("runs")
    open_run(config, "")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    tracker = MlflowTracker(config)
    path = RunFolder.of(config).weights
    path.write_bytes(b"weights")
    with pytest.raises(Exception, match=r"(?i)connect") as told:
        tracker.send_file(path)
    assert tracker.is_away(told.value)

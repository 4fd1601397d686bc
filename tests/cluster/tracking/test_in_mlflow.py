"""What MLflow shows of a run besides its metrics: how it was made, how it ended, its student and its images."""

import socket

import mlflow
import pytest

from cluster.recipe.reading import parse
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import RunLog, close_run, open_run
from kdcore.errors import Refused
from ops.history import runs_of
from pipelines.files import write_json
from tests.cluster.tracking.logs import opened_log, points


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


def test_an_experiment_that_was_deleted(recipe, store):
    """MLflow keeps its name: how to restore it is said, to a run and to a review, instead of that the store refuses."""
    config, client = parse(recipe(tracking__uri=store, tracking__experiment="gone")), mlflow.MlflowClient(store)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    told = (
        rf"'gone' was deleted in .*; restore it there, by `mlflow experiments restore -x {experiment}`, or give anothe"
    )
    with pytest.raises(Refused, match=told):
        open_run(config, "")
    with pytest.raises(Refused, match=told):
        runs_of(client, "gone")
    client.restore_experiment(experiment)
    assert client.get_run(open_run(config, "")).info.experiment_id == experiment


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

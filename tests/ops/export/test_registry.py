"""The registry: a model is logged beside a finished run, which stays as it ended."""

from pathlib import Path
from types import SimpleNamespace

import mlflow
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from cluster.tracking.folder import RunFolder
from kdcore.errors import Refused
from ops.export.model_card import repetitions_in_mlflow
from ops.export.registry import log_version, register
from tests.ops.conftest import METHODS, small_run

ENDED = 1_700_000_000_000  # milliseconds since 1970


@pytest.fixture
def run(tmp_path):
    """(store, id of a run in it that has ended, folder with a model.onnx)."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(store)
    experiment = client.create_experiment("small", artifact_location=(tmp_path / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_param(run_id, "seed", 3)
    client.set_terminated(run_id, "FINISHED", end_time=ENDED)
    write_means(tmp_path / "model.onnx")
    return store, run_id, tmp_path


def write_means(path: Path) -> None:
    """Write a network whose logits are the means of the three colours."""
    sides = ["batch", 3, 4, 4]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["images"], ["logits"], axes=[2, 3], keepdims=0)],
        "means",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, sides[:2])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


def log(run):
    store, run_id, folder = run
    return log_version(store, run_id, folder, torch.rand(3, 3, 4, 4), "means")


def test_a_model_is_of_its_run_and_its_experiment(run):
    assert log(run) == "1"
    client, run_id = mlflow.MlflowClient(run[0]), run[1]
    version, found = client.get_model_version("means", "1"), client.get_run(run_id)
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert version.source == f"models:/{model.model_id}"
    assert (version.run_id, model.source_run_id) == (run_id, run_id)
    assert (model.name, str(model.status)) == ("student", "READY")
    assert model.params["seed"] == "3"
    assert [output.model_id for output in found.outputs.model_outputs] == [model.model_id]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), mlflow.MlflowException("the server is away")])
def test_the_run_stays_as_it_ended(run, monkeypatch, error):
    """Its status and the time of its end, whether the model is logged, or the export is cut off meanwhile."""

    def cut_off(*args, **kwargs):
        raise error

    if error is None:
        log(run)
    else:
        monkeypatch.setattr(mlflow.MlflowClient, "log_model_artifacts", cut_off)
        with pytest.raises(type(error)):
            log(run)
    info = mlflow.MlflowClient(run[0]).get_run(run[1]).info
    assert (info.status, info.end_time) == ("FINISHED", ENDED)


@pytest.mark.parametrize("way", ["deleted", "never there"])
def test_a_run_that_mlflow_no_longer_has_is_exported_without_it(run, way):
    """Its card tells of its own result alone, and no version is registered, which is said."""
    store, run_id, folder = run
    if way == "deleted":
        mlflow.MlflowClient(store).delete_run(run_id)
    else:
        run_id = "0" * 32
    config = small_run(folder, "alone", METHODS["alone"], 0, tracking={"uri": store})
    RunFolder(folder).run_id.write_text(run_id)
    assert repetitions_in_mlflow(folder, SimpleNamespace(config=config)).runs == ()
    said = register(config, run_id, folder, torch.rand(3, 3, 4, 4), "means", "the card")
    assert said == f"not registered: {store} no longer has the run {run_id} to register a model of"
    assert mlflow.MlflowClient(store).search_model_versions("name='means'") == []


def test_a_store_that_is_away_is_no_store_without_the_run(run, monkeypatch):
    def away(*args):
        raise mlflow.MlflowException("no answer")

    store, run_id, folder = run
    monkeypatch.setattr(mlflow.MlflowClient, "get_run", away)
    config = small_run(folder, "alone", METHODS["alone"], 0, tracking={"uri": store})
    with pytest.raises(Refused, match="does not answer"):
        register(config, run_id, folder, torch.rand(3, 3, 4, 4), "means", "the card")

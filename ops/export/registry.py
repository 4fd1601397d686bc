"""MLflow's model registry: the exported student as a version of a registered model, loaded back and compared."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from cluster.recipe.config import RunConfig
from cluster.tracking.description import method_name, network_pair
from cluster.tracking.mlflow_errors import mlflow_errors_as_refusals
from cluster.tracking.mlflow_store import is_missing
from cluster.tracking.mlflow_tracker import tracking_uri
from kdcore.credentials import without_credentials
from kdcore.errors import Refused
from kdcore.named_models import module_of, short_name
from ops.history import find_run

DIGEST = "sha256"
REQUIREMENTS = ("mlflow", "onnx", "onnxruntime", "numpy")


def default_name(config: RunConfig) -> str:
    """Return a model name made of the student and its data.

    All methods that train the student compete for one name. A user's own function is preceded by its module, and what
    is neither letter, digit, `_`, `.` nor `-` becomes a `-`.
    """
    model = config.student.model
    student = short_name(model) if module_of(model) is None else model.replace(":", ".")
    return re.sub(r"[^\w.-]+", "-", f"{student}-{config.data.name}")


def register(config: RunConfig, run_id: str, folder: Path, images: Tensor, name: str | None, card: str) -> str:
    """Register a version of the model, unless these very bytes are one already; return the sentence that says which.

    As ONNX, which loads without a pickle. Refused where the server does not answer; nothing is registered where what
    MLflow loads back predicts differently from the file, or where the run is no longer in MLflow.
    """
    import mlflow

    name = name or default_name(config)
    uri = tracking_uri(config)
    if is_missing(uri):
        return f"not registered: {uri}, the store of the run {run_id}, is missing"
    client = mlflow.MlflowClient(uri)
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    with mlflow_errors_as_refusals(uri, "the model is not registered: export again when it is back"):
        known = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get(DIGEST) == digest]
        if known:
            return f"registered already: models:/{name}/{known[0].version}"
        if find_run(client, run_id) is None:
            return f"not registered: {without_credentials(uri)} no longer has the run {run_id} to register a model of"
        number = log_version(uri, run_id, folder, images, name)
        tags = {DIGEST: digest, "method": method_name(config), "pair": network_pair(config), "run": config.name}
        for key, value in tags.items():
            client.set_model_version_tag(name, number, key, value)
        client.update_model_version(name, number, description=card[:5000])
    return f"registered: models:/{name}/{number}"


@contextmanager
def using_store(uri: str) -> Iterator[None]:
    """Have MLflow's module-level functions use a store while the body runs."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it, despite the annotation


def log_version(uri: str, run_id: str, folder: Path, images: Tensor, name: str) -> str:
    """Log the ONNX file with its signature; register it once what MLflow loads back predicts the same.

    Returns the version's number. The example that MLflow keeps is zeros: the images may be nobody else's to see.
    """
    import mlflow

    logging.getLogger("mlflow.onnx").setLevel(logging.ERROR)  # no warning that this machine has no GPU
    client, example = mlflow.MlflowClient(uri), np.zeros_like(images[:2].numpy())
    logits = predict_file(folder / "model.onnx", images)
    run = client.get_run(run_id)
    # Created and logged by ids: mlflow.start_run would end the run again, and as failed if this is interrupted.
    model = client.create_logged_model(
        run.info.experiment_id, name="student", source_run_id=run_id, params=dict(run.data.params)
    )
    with using_store(uri):
        logged = mlflow.onnx.log_model(
            onnx.load(folder / "model.onnx"),
            model_id=model.model_id,
            run_id=run_id,
            signature=mlflow.models.infer_signature(example, {"logits": logits[:2]}),
            input_example=example,
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            save_as_external_data=False,
        )
        again = mlflow.pyfunc.load_model(logged.model_uri).predict(images.numpy())["logits"]
        if not np.array_equal(again, logits):
            client.delete_logged_model(logged.model_id)
            raise Refused(
                f"what MLflow loads back of {folder / 'model.onnx'} gives other predictions than that file, so no "
                f"version of {name} was registered; export again with the packages that requirements.txt pins"
            )
        return str(mlflow.register_model(logged.model_uri, name).version)


def predict_file(path: Path, images: Tensor) -> np.ndarray:
    """Return the file's logits in ONNX Runtime: [n,K]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})[0]

"""A run's student as an MLflow model: MLflow's page of models then compares students by their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL = "student.model"  # the run's tag with the model's id: it is there once the model is complete
PREFIXES = ("val/", "held_out/")


def log_student(client: Any, run_id: str, name: str, params: Mapping[str, str]) -> None:
    """Log the student of a finished run, once, with its accuracy at every validation.

    name: the run's; its dots, which MLflow does not allow in a model's name, become dashes. params: that describe it.
    The validations are those that MLflow has of the run: as the very same points, they are not added to the run again.
    The model's weights are the run's own file, `student.safetensors`.
    """
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    if MODEL in run.data.tags:
        return
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    model = (
        found[0]
        if found  # cut off while it was made
        else client.create_logged_model(
            experiment, name=name.replace(".", "-"), source_run_id=run_id, model_type="student", params=dict(params)
        )
    )
    metrics = [
        Metric(key, point.value, point.timestamp, point.step, model_id=model.model_id)
        for key in run.data.metrics
        if key.startswith(PREFIXES)
        for point in client.get_metric_history(run_id, key)
    ]
    if metrics:
        client.log_batch(run_id, metrics=metrics)
    client.finalize_logged_model(model.model_id, "READY")
    client.set_tag(run_id, MODEL, model.model_id)

"""Runs' logs for tests: what is logged, and what MLflow has of it."""

import mlflow

from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.tracking.run import RunLog, open_run


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

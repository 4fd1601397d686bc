"""Which MLflow store a command means, brought up to date first."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute_store
from cluster.tracking.delivery import deliver_all
from kdcore.credentials import without_credentials
from kdcore.errors import Refused
from ops.console import say

LOOPBACK = "http://127.0.0.1:5000"


def open_store(store: str | None) -> str:
    """Return the URI of a store, given as such or as an output folder.

    What the runs of a folder have kept back is delivered first. None: MLFLOW_TRACKING_URI, or else the default output
    folder. Refused for a folder without a store.
    """
    store = store or os.environ.get("MLFLOW_TRACKING_URI") or RunConfig.model_fields["output_dir"].default
    folder, found = Path(store), absolute_store(store, Path.cwd())  # which refuses localhost:5000
    if "://" in store:
        return found
    try:
        if delivered := deliver_all(folder):
            say(f"delivered to MLflow: {', '.join(delivered)}")
    except Refused as error:  # about a run's own store, which may be another one
        say(str(error))
    database = (folder / "mlflow.db").absolute()
    if not database.is_file():
        raise Refused(f"{folder} has no mlflow.db; give the folder that runs were written to, or the store's URI")
    return f"sqlite:///{database}"


def run_link(uri: str, experiment_id: str, run_id: str) -> str:
    """Return where MLflow shows a run: on its server, or where `python -m ops ui` serves a store that is a file."""
    root = without_credentials(uri).rstrip("/") if uri.startswith("http") else LOOPBACK
    return f"{root}/#/experiments/{experiment_id}/runs/{run_id}"


def runs_link(root: str, experiment_id: str, view: str) -> str:
    """Return where MLflow's server at `root` shows an experiment's training runs, laid out by a view stored there."""
    return f"{root}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}"

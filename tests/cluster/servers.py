"""Servers that tests start, stop and start again, all on the loopback address."""

from __future__ import annotations

import os
import runpy
import socket
import sys
import time
import urllib.error
import urllib.request
from multiprocessing.process import BaseProcess
from pathlib import Path

import mlflow
import pytest

from cluster.recipe.config import RunConfig
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_store import make_store
from cluster.tracking.mlflow_tracker import CONSTANTS
from tests.processes import forking


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class MlflowServer:
    """MLflow's server with its store in a folder; the same address and the same store after every start.

    Its process is forked from one that has imported most of it. What a user types is started by `test_ui.py`.
    """

    def __init__(self, folder: Path, store: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.store = store or f"sqlite:///{folder / 'mlflow.db'}"
        self.process: BaseProcess | None = None

    def start(self) -> None:
        """Returns when it answers; leaves none behind that does not. Its store is made by this process."""
        self.stop()
        make_store(self.store, self.folder / "artifacts")
        self.process = forking().Process(target=serve_mlflow, args=(self.store, self.folder, self.port))
        self.process.start()
        try:
            wait_for(self.answers, 90)
        except BaseException:
            self.stop()
            raise

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.is_alive(), (self.folder / "server.log").read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """Ends it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def serve_mlflow(store: str, folder: Path, port: int) -> None:
    """Be `mlflow server --workers 1`, which tells the program that it starts all but the port by its environment."""
    from mlflow.server import constants

    with (folder / "server.log").open("ab") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: store,
        constants.REGISTRY_STORE_URI_ENV_VAR: store,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(folder / "artifacts"),
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    sys.argv = ["uvicorn", "--host", "127.0.0.1", "--port", str(port), "mlflow.server.fastapi_app:app"]
    runpy.run_module("uvicorn", run_name="__main__")


def wait_for(condition, seconds: float) -> None:
    """Until the condition holds; TimeoutError where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)


def is_complete(config: RunConfig, run_id: str) -> bool:
    """Whether MLflow has what the run's file has: every metric, its steps in order, its values; constants as tags."""
    client = mlflow.MlflowClient(config.tracking.uri)
    rows = read_journal(config.run_dir / "metrics.jsonl")
    assert len(rows) > 20
    last = {name: value for row in rows for name, value in row.items()}
    names = last.keys() - {"step", "time"}
    constants = {name for name in names if name.startswith(CONSTANTS)}
    tags = client.get_run(run_id).data.tags
    for name in constants:
        assert float(tags[name]) == pytest.approx(last[name], rel=1e-11), name
    assert len(constants) > 2
    for name in names - constants:
        expected = [(row["step"], row[name], int(row["time"] * 1000)) for row in rows if name in row]
        found = [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, name)]
        assert found == expected, name
    there = {file.path for file in client.list_artifacts(run_id)}
    return there >= {"recipe.yaml", "first_batch.png", "student.safetensors"} and (
        client.get_run(run_id).info.status == "FINISHED"
    )

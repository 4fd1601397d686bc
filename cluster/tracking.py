"""Recording a run: metrics as JSON lines beside it first, then in MLflow, with all it takes to run it again.

Only rank 0 writes. The driver makes the MLflow store, the experiment and the run before any worker starts (a fresh
SQLite store does not survive several first visitors). MLflow takes seconds to import and milliseconds to answer:
nothing here imports it before it is needed, and the training loop does not wait for it.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from cluster.config import RunConfig, to_yaml

logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)


def tracking_uri(config: RunConfig) -> str:
    """The MLflow store: the recipe's, or SQLite in the output folder."""
    return config.tracking.uri or f"sqlite:///{Path(config.output_dir).absolute() / 'mlflow.db'}"


def open_run(config: RunConfig, command: str) -> str:
    """The id of this run in MLflow: the one it had before if it is being continued, else a new one with the resolved
    recipe, the git commit and the installed packages."""
    import mlflow
    from mlflow.entities import Param, RunTag

    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(config)
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri)
    remembered = config.run_dir / "mlflow_run_id"
    if remembered.exists():
        run_id = remembered.read_text()
        client.update_run(run_id, status="RUNNING")
        return run_id
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    artifacts = None if config.tracking.uri else (Path(config.output_dir).absolute() / "artifacts").as_uri()
    experiment_id = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(
            config.tracking.experiment,
            artifact_location=artifacts,
            tags={"mlflow.experimentKind": "custom_model_development"},  # the page shows training runs, not chats
        )
    )
    run = client.create_run(experiment_id, run_name=config.name)
    run_id = run.info.run_id
    tags = {
        "method": "+".join(term.term for term in config.method),
        "student": config.student.model,
        "teacher": config.teacher.model if config.teacher else "none",
        "data": Path(config.data.root).name,
        "mlflow.source.name": "stillhouse",
        "mlflow.source.git.commit": git_commit(),
        "mlflow.note.content": f"Run again with\n\n    {command}",
    }
    params = [Param(key, str(value)[:500]) for key, value in flat(config.model_dump(mode="json")).items()]
    client.log_batch(run_id, params=params, tags=[RunTag(k, v) for k, v in tags.items()])
    client.log_text(run_id, to_yaml(config), "recipe.yaml")
    client.log_text(run_id, packages(), "packages.txt")
    config.run_dir.mkdir(parents=True, exist_ok=True)
    remembered.write_text(run_id)
    return run_id


def close_run(config: RunConfig, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Marks the run's end in MLflow."""
    import mlflow

    mlflow.MlflowClient(tracking_uri(config)).set_terminated(run_id, status)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def git_commit() -> str:
    """The commit of the code, with '-dirty' where files differ from it; 'unknown' outside a repository."""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def packages() -> str:
    """Every installed distribution as name==version, one a line."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


class Tracker:
    """Writes one run's metrics: `metrics.jsonl` in its folder at once, and MLflow from a thread of its own.

    first_step: metrics of steps from here on, left by an attempt that was cut off, are taken out of the file: they
    come again. An error of MLflow is raised by the next call, or by `close`.
    """

    def __init__(self, config: RunConfig, run_id: str, first_step: int) -> None:
        self.path = config.run_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= first_step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.file = self.path.open("a")
        self.thread = ThreadPoolExecutor(1, "mlflow")
        self.under_way: list[Future[None]] = []
        self.opening = self.thread.submit(Ledger, config, run_id, first_step > 0)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after `step` optimiser steps."""
        now = time.time()
        self.file.write(json.dumps({"step": step, "time": now, **metrics}) + "\n")
        self.file.flush()
        self._hand_over(lambda ledger: ledger.log(step, now, metrics))

    def artifact(self, path: Path) -> None:
        self._hand_over(lambda ledger: ledger.artifact(path))

    def close(self) -> None:
        """Waits until everything is in MLflow."""
        self._hand_over(lambda ledger: ledger.close())
        self.thread.shutdown()
        self._check()
        self.file.close()

    def _hand_over(self, task: Callable[[Ledger], None]) -> None:
        self._check()
        self.under_way.append(self.thread.submit(lambda: task(self.opening.result())))

    def _check(self) -> None:
        """Raises the error of a task that has failed, and forgets those that are done."""
        waiting = []
        for future in self.under_way:
            if future.done():
                future.result()
            else:
                waiting.append(future)
        self.under_way = waiting


class Ledger:
    """MLflow's side of a `Tracker`; lives in its thread."""

    def __init__(self, config: RunConfig, run_id: str, continuing: bool) -> None:
        import mlflow
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.run_id, self.client = run_id, mlflow.MlflowClient(tracking_uri(config))
        self.monitor = None
        if config.tracking.system_metrics:
            mlflow.set_tracking_uri(tracking_uri(config))
            self.monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=continuing)
            self.monitor.start()

    def log(self, step: int, seconds: float, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        values = [Metric(name, float(value), int(seconds * 1000), step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def close(self) -> None:
        if self.monitor is not None:
            self.monitor.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows

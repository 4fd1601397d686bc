"""Recording a run: metrics as JSON lines beside it first, then in MLflow, with all it takes to run it again.

Only rank 0 writes. The driver makes the MLflow store, the experiment and the run, while the workers start (a fresh
SQLite store does not survive several first visitors). MLflow takes seconds to import and milliseconds to answer, and
may be away for hours: nothing here imports it before it is needed, and the training loop does not wait for it.

Not here: how the lines get to MLflow (`cluster.tracking.delivery`).
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import subprocess
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal

from cluster.config import RunConfig
from cluster.recipe import to_yaml
from cluster.tracking.delivery import (
    METRICS,
    OUTBOX,
    RUN_ID,
    SYSTEM,
    Courier,
    asking,
    deliver,
    end,
    is_away,
    tracking_uri,
)
from cluster.tracking.folder import flat
from cluster.tracking.journal import keep
from cluster.tracking.machine import Machine
from pipelines.files import make_folder

RETRY_SECONDS = 1.0
PATIENCE_SECONDS = 10.0  # with a server that is away, when all else is done

logger = logging.getLogger("stillhouse")


def open_run(config: RunConfig, command: str, tags: Mapping[str, str] | None = None) -> str:
    """The id of this run in MLflow: the one it had before if it is being continued, else a new one with the resolved
    recipe, the git commit and the installed packages. tags: further ones, such as those of a sweep.

    A run that is being continued goes on without its server. A new one is refused, in a refusal: nothing is lost
    yet, and a server that is down cannot be told from an address that is wrong.
    """
    remembered = config.run_dir / RUN_ID
    make_folder(config.run_dir, "output_dir")
    (config.run_dir / OUTBOX).touch()
    uri = tracking_uri(config)
    if not remembered.exists():
        with asking(uri, "start it, or correct tracking.uri (none: a file in the output folder)"):
            remembered.write_text(create_run(config, command, tags or {}))
        return remembered.read_text()
    try:
        reopen(config, remembered.read_text())
    except Exception as error:
        if not is_away(error):
            raise
        logger.warning("%s does not answer; the metrics of %s are kept in its folder", uri, config.name)
    return remembered.read_text()


def create_run(config: RunConfig, command: str, tags: Mapping[str, str]) -> str:
    """A new run in MLflow, described; its id."""
    import mlflow
    from mlflow.entities import Param, RunTag

    client = mlflow.MlflowClient(tracking_uri(config))
    run = client.create_run(experiment_id(client, config), run_name=title(config))
    described = {**description(config, command), **tags}
    decisive = config.model_dump(mode="json", exclude={"about"})
    params = [Param(key, str(value)[:500]) for key, value in flat(decisive).items()]
    for start in range(0, len(params), 100):  # as many as MLflow takes at once
        client.log_batch(run.info.run_id, params=params[start : start + 100])
    client.log_batch(run.info.run_id, tags=[RunTag(k, v) for k, v in described.items()])
    client.log_text(run.info.run_id, to_yaml(config), "recipe.yaml")
    client.log_text(run.info.run_id, packages(), "packages.txt")
    return run.info.run_id


def experiment_id(client: Any, config: RunConfig) -> str:
    """The recipe's experiment, made where it is not there yet; by one of several runs that start together."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        served = tracking_uri(config).startswith("http")  # a server has a place of its own for files
        folder = None if served else (Path(config.output_dir).absolute() / "artifacts").as_uri()
        tags = {"mlflow.experimentKind": "custom_model_development"}  # the page shows training runs, not chats
        try:
            return client.create_experiment(name, artifact_location=folder, tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id


def reopen(config: RunConfig, run_id: str) -> None:
    """Marks a run that is being continued."""
    import mlflow

    mlflow.MlflowClient(tracking_uri(config)).update_run(run_id, status="RUNNING")


def title(config: RunConfig) -> str:
    """A run's name for people: 'kd-seed0: ce+kd, resnet34 > resnet18'."""
    return f"{config.name}: {method(config)}, {pair(config)}"


def method(config: RunConfig) -> str:
    return "+".join(term.term for term in config.method if term.weight > 0)


def pair(config: RunConfig) -> str:
    """Teacher and student."""
    return f"{config.teacher.model} > {config.student.model}" if config.teacher else config.student.model


def description(config: RunConfig, command: str) -> dict[str, str]:
    """The tags that a run has in MLflow."""
    return {
        "run": config.name,
        "method": method(config),
        "pair": pair(config),
        "student": config.student.model,
        "teacher": config.teacher.model if config.teacher else "none",
        "data": Path(config.data.root).name,
        "seed": str(config.seed),
        "mlflow.source.name": "stillhouse",
        "mlflow.source.git.commit": git_commit(),
        "mlflow.note.content": "\n\n".join([*note(config), f"Run again with\n\n    {command}"]),
    }


def note(config: RunConfig) -> list[str]:
    """Return what a recipe says about itself as paragraphs for the run's page; the whole is in its recipe.yaml."""
    about = config.about
    return [part for part in (about.title, about.paper, f"Published: {about.expected}") if part] if about else []


def close_run(config: RunConfig, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """Marks the run's end in MLflow, and delivers what its tracker could not; or leaves both for later."""
    import mlflow

    outbox = config.run_dir / OUTBOX
    complete = not outbox.exists()
    outbox.write_text(status)
    try:
        if complete:
            end(config, mlflow.MlflowClient(tracking_uri(config)))
        else:
            deliver(config)
    except Exception as error:
        if not is_away(error):
            raise
        logger.warning(
            "%s does not answer; what it lacks of %s is kept in its folder: python -m ops deliver %s",
            tracking_uri(config),
            config.name,
            config.output_dir,
        )


def git_commit() -> str:
    """The commit of the code, with '-dirty' where files differ from it; 'unknown' outside a repository."""
    root = Path(__file__).parents[2]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git
        return "unknown"
    return done.stdout.strip() or "unknown"


def packages() -> str:
    """Every installed distribution as name==version, one a line."""
    found = {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


class Tracker:
    """Writes one run's metrics: into its folder at once, and to MLflow from a thread of its own.

    first_step: metrics of steps from here on, left by an attempt that was cut off, are taken out of the file: they
    come again. While the server is away, lines collect in the folder. An error of MLflow that waiting does not help is
    raised by the next call, or by `close`.
    """

    def __init__(self, config: RunConfig, run_id: str, first_step: int) -> None:
        self.config, self.run_id = config, run_id
        self.path = config.run_dir / METRICS
        keep(self.path, first_step)
        self.file = self.path.open("a")
        self.files: deque[Path] = deque()
        self.courier: Courier | None = None
        self.news, self.closing = Event(), Event()
        self.patience_ends = math.inf
        self.error: Exception | None = None
        self.machine = Machine(config.run_dir / SYSTEM, self.news) if config.tracking.system_metrics else None
        self.thread = Thread(target=self._keep_delivering, name="mlflow", daemon=True)
        self.thread.start()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Metrics after `step` optimiser steps."""
        self._check()
        self.file.write(json.dumps({"step": step, "time": time.time(), **metrics}) + "\n")
        self.file.flush()
        self.news.set()

    def artifact(self, path: Path) -> None:
        self._check()
        self.files.append(path)
        self.news.set()

    def close(self) -> None:
        """Waits until everything is in MLflow; for a server that is away, a short while."""
        if self.machine is not None:
            self.machine.close()
        self.patience_ends = time.monotonic() + PATIENCE_SECONDS
        self.closing.set()
        self.news.set()
        self.thread.join()
        self.file.close()
        self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _keep_delivering(self) -> None:
        """The thread: delivers whenever there is news; ends when the tracker is closed and all is delivered."""
        while True:
            self.news.wait()
            self.news.clear()
            closing = self.closing.is_set()  # whatever was written before this look is delivered below
            try:
                self._deliver()
            except Exception as error:
                if not is_away(error):
                    self.error = error
                    return
                if time.monotonic() > self.patience_ends:
                    return  # the outbox says that something is left
                self.news.set()
                time.sleep(RETRY_SECONDS)
            else:
                if closing:
                    (self.config.run_dir / OUTBOX).unlink(missing_ok=True)
                    return

    def _deliver(self) -> None:
        self.courier = self.courier or Courier(self.config, self.run_id)
        self.courier.deliver()
        while self.files:
            self.courier.artifact(self.files[0])
            self.files.popleft()

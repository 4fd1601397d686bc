"""MLflow as a tracker: it gets the run, its recipe and its metrics, each once, now or when the server is back.

MLflow itself is asked what it already has, so that nothing has to be kept in step with it: of every metric it has all
points up to a step, since they are sent in order. A lost answer does no harm either: the same point (metric, step,
time, value) sent twice is kept once.

MLflow takes seconds to import and milliseconds to answer: nothing here imports it before it is needed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

from cluster.provenance import Provenance, job_tags
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import to_yaml
from cluster.tracking.description import about_paragraphs, packages, run_tags, run_title, weights_tags
from cluster.tracking.fields import flat_fields, param_text
from cluster.tracking.folder import PENDING, RunFolder
from cluster.tracking.logged_model import log_student
from cluster.tracking.mlflow_errors import (
    file_problem,
    is_away,
    is_of_deleted,
    mlflow_errors_as_refusals,
    require_active,
)
from cluster.tracking.mlflow_store import is_missing, make_store
from cluster.tracking.tracker import Row, Status, Tracker, number_or_none
from kdcore.credentials import public, without_credentials
from kdcore.errors import Refused
from kdcore.importing import importing
from kdcore.remarks import warn_once
from pipelines.files import write_text

KEY_TAG = "stillhouse.key"  # the tag by which a run is found again if its creation was cut off
ERROR_TAG = "error"  # the tag that says why a run failed
# Prefixes of numbers that no step changes: tags in MLflow, where a metric would be drawn as one dot.
CONSTANTS = ("model/", "data/cache_bytes")
DESCRIBED_TAG = "run"  # a tag that is there once a run's description is complete
DIGEST_LENGTH = 32  # of a data set; MLflow takes 36
PARAMS_AT_ONCE = 100  # what MLflow takes

logger = logging.getLogger("stillhouse")


class MlflowTracker(Tracker):
    """A run in MLflow, whose id lies in the run's folder."""

    name: ClassVar[str] = "mlflow"

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.last_steps: dict[str, int] = {}  # {metric: its last step in MLflow}

    @cached_property
    def client(self) -> Any:
        """MLflow's client for the recipe's store."""
        return open_store(self.config)

    @property
    def run_id(self) -> str:
        """The run's id in MLflow."""
        run_id = self.folder.read_run_id()
        assert run_id is not None, "open has written it"
        return run_id

    def open(self, command: str, tags: Mapping[str, str]) -> None:
        """Make the run in MLflow with the resolved recipe, the commit and the packages, or mark it as going on.

        A run that is being continued goes on without its server. A new one is refused: nothing is lost yet, and a
        server that is down cannot be told from a wrong address.
        """
        uri = tracking_uri(self.config)
        if self.folder.read_run_id() is None:
            with mlflow_errors_as_refusals(
                uri, "start it, or correct tracking.uri (none: a file in the output folder)"
            ):
                write_text(self.folder.run_id, self._create())
                self._describe(command, tags)
            return
        remedy = f"restore the run there, or delete {self.folder.run_id}: it is then a new one, with all its metrics"
        with mlflow_errors_as_refusals(uri, remedy):
            try:
                self.client.update_run(self.run_id, status="RUNNING")
                if DESCRIBED_TAG not in self.client.get_run(self.run_id).data.tags:  # cut off while it was made
                    self._describe(command, tags)
            except Exception as error:
                if not is_away(error):
                    raise
                logger.warning(
                    "%s does not answer; the metrics of %s are kept in its folder",
                    without_credentials(uri),
                    self.config.name,
                )

    def send(self, rows: list[Row]) -> None:
        """Send the points of the rows that MLflow lacks, as one request; numbers that no step changes as tags."""
        from mlflow.entities import Metric, RunTag

        metrics, tags, steps = [], {}, dict(self.last_steps)
        for row in rows:
            for name in row.keys() - {"step", "time"}:
                value = number_or_none(row[name])
                if name.startswith(CONSTANTS):
                    tags[name] = f"{value:.12g}" if value is not None else "-"
                    continue
                if name not in steps:
                    history = self.client.get_metric_history(self.run_id, name)
                    steps[name] = self.last_steps[name] = max((point.step for point in history), default=-1)
                if value is not None and row["step"] > steps[name]:
                    metrics.append(Metric(name, value, int(row["time"] * 1000), row["step"]))
                    steps[name] = row["step"]
        if metrics or tags:
            self.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(*pair) for pair in tags.items()])
        self.last_steps = steps

    def send_file(self, path: Path) -> None:
        """Store a file as an artifact of the run. Refused for one that the store does not take, now or later."""
        try:
            self.client.log_artifact(self.run_id, str(path))
        except Exception as error:
            if (problem := file_problem(error, path.stat().st_size)) is None:
                raise
            raise Refused(f"the MLflow store {tracking_uri(self.config)} rejects {path.name}: {problem}") from error

    def missing_files(self) -> list[Path]:
        """Return the run's files that MLflow lacks."""
        there = {artifact.path for artifact in self.client.list_artifacts(self.run_id)}
        return [path for path in self.folder.artifacts if path.name not in there and path.exists()]

    def end(self, status: Status) -> None:
        """Mark the run as ended; a failed one with its error line, a finished one with its student."""
        if status == "FAILED" and self.folder.error.is_file():
            self.client.set_tag(self.run_id, ERROR_TAG, self.folder.error.read_text()[:5000])
        run = self.client.get_run(self.run_id)
        if status != "FAILED" and ERROR_TAG in run.data.tags:  # of an earlier attempt
            self.client.delete_tag(self.run_id, ERROR_TAG)
        if run.info.status != status:  # else it keeps the time of its end, which a sweep has written before
            self.client.set_terminated(self.run_id, status)
        if status == "FINISHED" and self.folder.weights.exists():  # a sweep itself has no student
            self._log_student()

    def is_away(self, error: BaseException) -> bool:
        """Return whether the server cannot be reached now."""
        return is_away(error)

    @contextmanager
    def errors_as_refusals(self, remedy: str) -> Iterator[None]:
        """Turn an error of the store into a Refused in one line; remedy: what to do."""
        try:
            yield
        except Exception as error:
            if is_of_deleted(error):
                remedy = f"restore the run there, by `mlflow runs restore --run-id {self.run_id}`; {remedy}"
            with mlflow_errors_as_refusals(tracking_uri(self.config), remedy):
                raise

    def _create(self) -> str:
        """Return the id of a new run, or of the one that this folder had begun to make when it was cut off.

        The run is found again by a tag that the folder knows before MLflow does.
        """
        experiment = self._experiment_id()
        known = self.folder.run_id.read_text() if self.folder.run_id.exists() else ""
        key = known.removeprefix(PENDING).strip()
        found = self.client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'") if key.isalnum() else []
        if not found:
            key = uuid4().hex
            write_text(self.folder.run_id, PENDING + key)
        run = (
            found[0]
            if found
            else self.client.create_run(experiment, run_name=run_title(self.config), tags={KEY_TAG: key})
        )
        made: str = run.info.run_id
        return made

    def _describe(self, command: str, tags: Mapping[str, str]) -> None:
        """Log what the run is: its fields, tags, recipe and packages. What is there already stays as it is."""
        from mlflow.entities import Param, RunTag

        run_id = self.run_id
        code = Provenance.of_tree()
        described = {
            **run_tags(self.config),
            **weights_tags(self.config, self.folder.weights_fingerprints()),
            "mlflow.source.name": "stillhouse",
            "mlflow.source.git.commit": code.commit,
            **({"mlflow.user": code.user} if code.user else {}),
            **job_tags(),
            "mlflow.note.content": "\n\n".join([*about_paragraphs(self.config), f"Run again with\n\n    {command}"]),
            **tags,
        }
        fields = flat_fields(public(self.config.model_dump(mode="json", exclude={"about"})))
        there = self.client.get_run(run_id).data.params
        params = [Param(key, param_text(value)) for key, value in fields.items() if key not in there]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run_id, params=params[start : start + PARAMS_AT_ONCE])
        self.client.log_text(run_id, to_yaml(self.config), "recipe.yaml")
        self.client.log_text(run_id, packages(), "packages.txt")
        if code.diff:
            self.client.log_text(run_id, code.diff, "uncommitted.diff")
        self._log_images()
        self.client.log_batch(
            run_id, tags=[RunTag(key, without_credentials(value)) for key, value in described.items()]
        )

    def _log_student(self) -> None:
        """Log the student among MLflow's models; warn where the server is too old to have any."""
        from mlflow.exceptions import MlflowException

        description = {name: run_tags(self.config)[name] for name in ("student", "method")}
        try:
            log_student(self.client, self.run_id, self.config.name, description)
        except MlflowException as error:
            if error.error_code != "ENDPOINT_NOT_FOUND":
                raise
            uri = without_credentials(tracking_uri(self.config))
            warn_once(f"{uri} lists no students as models, which needs MLflow 3; its runs are complete without that")

    def _log_images(self) -> None:
        """Log the training images as the run's data set, by the digest of their index."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = self.config.data
        fingerprint = self.folder.data_fingerprint()
        if fingerprint is None:  # a sweep's parent, which reads none itself
            return
        source = json.dumps({"uri": without_credentials(data.root), "split": data.train_split})
        dataset = Dataset(data.name, fingerprint[:DIGEST_LENGTH], "stillhouse", source)
        context = [InputTag("mlflow.data.context", "training")]
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset, context)])

    def _experiment_id(self) -> str:
        """Return the recipe's experiment; where it is missing, one of the runs that start together makes it."""
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.experiment
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            served = tracking_uri(self.config).startswith("http")  # a server has a place of its own for files
            folder = None if served else (Path(self.config.output_dir).absolute() / "artifacts").as_uri()
            tags = {"mlflow.experimentKind": "custom_model_development"}  # the page shows training runs, not chats
            try:
                made: str = self.client.create_experiment(name, artifact_location=folder, tags=tags)
                return made
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self.client.get_experiment_by_name(name)
        require_active(experiment, tracking_uri(self.config))
        found: str = experiment.experiment_id
        return found


def tracking_uri(config: RunConfig) -> str:
    """Return the MLflow store: the recipe's, else what the run's folder names, else SQLite in the output folder.

    A stored address has no credentials: it gets those of the environment's URI, if that is the same except for them.
    """
    known = os.environ.get("MLFLOW_TRACKING_URI", "")
    uri = config.tracking.uri or RunFolder.of(config).read_store()
    if uri is None:
        return own_store(config)
    return known if without_credentials(known) == uri else uri


def own_store(config: RunConfig) -> str:
    """Return the MLflow store of a recipe that names none: SQLite in the output folder."""
    return f"sqlite:///{Path(config.output_dir).absolute() / 'mlflow.db'}"


def open_store(config: RunConfig) -> Any:
    """Return MLflow's client for the recipe's store, which is made if it is a missing file.

    Refused for a missing file that has the recipe's run: a new one would not have it.
    """
    uri, folder = tracking_uri(config), RunFolder.of(config)
    if is_missing(uri) and folder.read_run_id() is not None:
        raise Refused(
            f"the MLflow store {uri}, which has the run of {folder.path}, is missing; put it back, or write its "
            f"address into {folder.store}, or delete {folder.run_id}: the run is then a new one, with all its metrics"
        )
    with importing("mlflow"):
        import mlflow

    # What it logs, with a traceback, it also raises, and that is said in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    make_store(uri, Path(config.output_dir).absolute() / "artifacts")
    return mlflow.MlflowClient(uri)

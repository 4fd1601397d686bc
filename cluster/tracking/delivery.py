"""From a run's folder to MLflow: every metric in order and once, now or when the server is back.

The folder comes first: whatever is tracked is a line of a journal before anybody asks for MLflow. What MLflow has
already is asked of MLflow itself, so that nothing has to be kept in step with it: of every metric it has all points up
to a step, for they are sent in order. An answer that was lost on its way is no danger either: the same point (metric,
step, time, value) sent twice is kept once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.recipe import load_recipe
from kdcore.errors import Refused

METRICS, SYSTEM = "metrics.jsonl", "system.jsonl"
JOURNALS = (METRICS, SYSTEM)
ARTIFACTS = ("first_batch.png", "curves.png", "student.safetensors")
RUN_ID = "mlflow_run_id"
OUTBOX = "outbox"  # there while something may not be in MLflow yet; holds the state in which the run ended, if it did
VALUES_AT_ONCE = 500
# Of these, waiting does not help.
FINAL = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}


def tracking_uri(config: RunConfig) -> str:
    """The MLflow store: the recipe's, or SQLite in the output folder."""
    return config.tracking.uri or f"sqlite:///{Path(config.output_dir).absolute() / 'mlflow.db'}"


def is_away(error: BaseException) -> bool:
    """Whether an error of MLflow's client means that the server cannot be reached now, or is not well."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in FINAL
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


@contextmanager
def asking(uri: str, otherwise: str) -> Iterator[None]:
    """Turns an error of the store into a Refused in one line. otherwise: what that means here, and the remedy."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        if not (is_away(error) or isinstance(error, MlflowException)):
            raise
        verb = "does not answer" if is_away(error) else "refuses"
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"the MLflow store {uri} {verb} ({reason}); {otherwise}") from error


class Courier:
    """Takes one run's journals and files to MLflow. Each call of `deliver` goes on where the last one stopped."""

    def __init__(self, config: RunConfig, run_id: str) -> None:
        import mlflow

        self.client, self.run_id, self.run_dir = mlflow.MlflowClient(tracking_uri(config)), run_id, config.run_dir
        self.read = dict.fromkeys(JOURNALS, 0)  # bytes of each that are in MLflow
        self.last_steps: dict[str, int] = {}  # {metric: its last step in MLflow}

    def deliver(self) -> None:
        """Sends every line that is complete. Raises what MLflow's client raises."""
        for journal in JOURNALS:
            for rows, end in self.unsent(journal):
                self.send(rows)
                self.read[journal] = end

    def unsent(self, journal: str) -> Iterator[tuple[list[dict[str, Any]], int]]:
        """(some rows, the end of the last of them in the file), until the journal's end."""
        path, rows, count = self.run_dir / journal, [], 0
        end = self.read[journal]
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                rows.append(json.loads(line))
                end, count = end + len(line), count + len(rows[-1])
                if count >= VALUES_AT_ONCE:
                    yield rows, end
                    rows, count = [], 0
        if rows:
            yield rows, end

    def send(self, rows: list[dict[str, Any]]) -> None:
        """The points of the rows that MLflow lacks, as one request."""
        from mlflow.entities import Metric

        metrics, steps = [], dict(self.last_steps)
        for row in rows:
            for name in row.keys() - {"step", "time"}:
                if name not in steps:
                    history = self.client.get_metric_history(self.run_id, name)
                    steps[name] = self.last_steps[name] = max((point.step for point in history), default=-1)
                if row["step"] > steps[name]:
                    metrics.append(Metric(name, float(row[name]), int(row["time"] * 1000), row["step"]))
                    steps[name] = row["step"]
        if metrics:
            self.client.log_batch(self.run_id, metrics=metrics)
        self.last_steps = steps

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.run_id, str(path))

    def missing_artifacts(self) -> list[Path]:
        """The files that a run leaves, as far as MLflow lacks them."""
        there = {artifact.path for artifact in self.client.list_artifacts(self.run_id)}
        return [path for name in ARTIFACTS if name not in there and (path := self.run_dir / name).exists()]


def deliver(config: RunConfig) -> None:
    """Brings MLflow up to date with a run's folder, its end included. Raises what MLflow's client raises."""
    courier = Courier(config, (config.run_dir / RUN_ID).read_text())
    courier.deliver()
    for path in courier.missing_artifacts():
        courier.artifact(path)
    end(config, courier.client)


def end(config: RunConfig, client: Any) -> None:
    """Marks a run's end in MLflow as its outbox says, if it does; nothing is left then."""
    outbox = config.run_dir / OUTBOX
    if status := outbox.read_text() if outbox.exists() else "":
        client.set_terminated((config.run_dir / RUN_ID).read_text(), status)
        outbox.unlink()


def deliver_all(output_dir: Path) -> list[str]:
    """Delivers what the runs in a folder have kept back; the names of those that are complete now.

    Runs that have not ended keep their outbox: whoever trains them delivers, and continuing them does. Refused where
    a store does not answer, or refuses.
    """
    delivered = []
    for outbox in sorted([*output_dir.glob(f"*/{OUTBOX}"), *output_dir.glob(f"*/*/{OUTBOX}")]):  # a sweep's lie deeper
        run_dir, recipe = outbox.parent, outbox.with_name("recipe.yaml")
        if not (recipe.exists() and (run_dir / RUN_ID).exists()):
            continue
        config = load_recipe(recipe, [f"output_dir={json.dumps(str(run_dir.parent.absolute()))}"])
        remedy = f"the metrics of {run_dir} stay there: try again later, or remove {outbox} to leave it at that"
        with asking(tracking_uri(config), remedy):
            deliver(config)
        if not outbox.exists():
            delivered.append(run_dir.name)
    return delivered

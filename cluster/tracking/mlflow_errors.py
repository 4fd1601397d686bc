"""What MLflow's errors mean: a server that is away, a store that refuses, a run that was deleted, a full disk.

Not here: what MLflow is asked (`cluster.tracking.mlflow_tracker`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.tracking.buckets import bucket_problem, is_bucket_away
from kdcore.errors import Refused, RunFailed, one_line
from kdcore.importing import importing
from pipelines.files import is_lasting, not_written

# Errors of MLflow that waiting does not cure.
LASTING_ERRORS = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
}
DAMAGED = ("file is not a database", "disk image is malformed")  # of SQLite
BUSY = (408, 429)  # the HTTP statuses below 500 that mean: try later
TOO_LARGE = 413
READ_ONLY = "attempt to write a readonly database"  # of SQLite, also for a file that was deleted


def is_away(error: BaseException) -> bool:
    """Return whether an error of MLflow's client means that the server cannot be reached now, or is not well."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in LASTING_ERRORS and not is_read_only(error)
    if (status := http_status(error)) is not None:
        return status in BUSY or status >= 500
    is_here = isinstance(error, FileNotFoundError | PermissionError) or is_read_only(error)  # a file, and no server
    return is_bucket_away(error) or (isinstance(error, OSError) and not is_here)


def is_of_deleted(error: BaseException) -> bool:
    """Return whether an error says that a run, or its experiment, was deleted in MLflow, which keeps it for a while."""
    return "must be in the 'active' state" in str(error)


def active_run(client: Any, run_id: str) -> Any:
    """Return MLflow's record of a run; None if the store does not have it, or no longer: it may have been deleted."""
    from mlflow.entities import LifecycleStage
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found if found.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def require_active(experiment: Any, uri: str) -> None:
    """Refuse an experiment that was deleted in MLflow, which keeps it, and its name, for a while."""
    from mlflow.entities import LifecycleStage

    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise Refused(
            f"tracking.experiment: {experiment.name!r} was deleted in the MLflow store {uri}; restore it there, by "
            f"`mlflow experiments restore -x {experiment.experiment_id}`, or give another tracking.experiment"
        )


def http_status(error: BaseException) -> int | None:
    """Return the status that a server of files has answered with; None for an error that is not an answer.

    MLflow raises such an answer as requests does, as an OSError.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def file_problem(error: BaseException, num_bytes: int) -> str | None:
    """Return why a file of `num_bytes` is not taken, and what to do, in one line; None for an error of another kind.

    A server that is away is of another kind.
    """
    if is_away(error):
        return None
    if isinstance(error, OSError) and error.filename and is_lasting(error):
        return not_written(Path(error.filename), error)
    if (status := http_status(error)) is None:
        return bucket_problem(error)
    limit = "raise the limit of the proxy in front of the server (nginx: client_max_body_size)"
    remedy = limit if status == TOO_LARGE else "let this user write files there"
    return f"HTTP status {status} for {num_bytes:,} bytes; {remedy}"


def is_read_only(error: BaseException) -> bool:
    """Return whether an error says that the store's file or its disk is read-only, which waiting does not cure."""
    return READ_ONLY in str(error) or (isinstance(error, OSError) and error.errno == errno.EROFS)


@contextmanager
def mlflow_errors_as_refusals(uri: str, remedy: str) -> Iterator[None]:
    """Turn an error of the store into a Refused in one line; remedy: what it means here, and what to do."""
    with importing("mlflow"):
        from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:
        if "disk is full" in str(error):  # whatever MLflow or SQLAlchemy make of SQLite's error
            raise RunFailed(
                f"the MLflow store {uri} cannot be written: its disk is full; free some space, and run the same "
                "command again"
            ) from error
        if problem := bucket_problem(error):
            raise Refused(f"the MLflow store {uri} cannot be used: {problem}") from error
        if any(sign in str(error) for sign in DAMAGED):
            raise Refused(
                f"the MLflow store {uri} is damaged ({one_line(error)}); restore the file, or move it away: "
                "a new one is made, without the runs that have ended"
            ) from error
        if isinstance(error, OSError) and error.filename and is_read_only(error):
            raise Refused(f"the MLflow store {uri}: {not_written(Path(error.filename), error)}") from error
        if is_read_only(error):
            raise Refused(
                f"the MLflow store {uri} cannot be written: this process had its file open when it was deleted or "
                "replaced, or may not write to it; restart Python, or grant it write access to the file"
            ) from error
        if isinstance(error, ModuleNotFoundError) or type(error).__module__.startswith("sqlalchemy."):
            raise Refused(
                f"the MLflow store {uri} cannot be opened ({one_line(error)}); install the driver of that database "
                "here and on every node, or name another store as tracking.uri"
            ) from error
        if "unsupported URI" in str(error):  # and then every kind that there is
            raise Refused(
                f"the MLflow store {uri} is of a kind that MLflow does not know; write http://HOST:PORT, "
                "sqlite:////FILE.db, or postgresql://..."
            ) from error
        if not (is_away(error) or isinstance(error, MlflowException) or http_status(error)):
            raise
        verb = "does not answer" if is_away(error) else "refuses"
        raise Refused(f"the MLflow store {uri} {verb} ({one_line(error)}); {remedy}") from error

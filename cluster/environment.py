"""Environment variables that the libraries read when they are first used; a value that is already set stays.

Applied when this package is imported, so before Ray and MLflow, whichever module comes first.
"""

from __future__ import annotations

import logging
import os

from kdcore.errors import Refused

SETTINGS = {
    # Read at the first tensor. On a CPU, large ones are fresh memory each time; huge pages cost fewer page faults.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Short runs end promptly, and a worker group that cannot be placed is reported instead of waited for forever.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Tune only runs trials here: no loggers, no tables, and no handler that would swallow Ctrl-C.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    # Telemetry off.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL contains the password
    # MLflow would retry for minutes: here the caller retries.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
QUIET_LOGGERS = ("mlflow", "alembic", "ray.train.v2.api.config")


def require_compiler() -> None:
    """Refuse a machine that has no C++ compiler, without which `torch.compile` ends at the first step."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # only here: it takes a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise Refused(
            "train.compile is true, but this machine has no C++ compiler (g++), which torch.compile needs; install "
            "one, or set train.compile=false"
        ) from error


def apply() -> None:
    """Set what is not set, and keep the libraries' loggers to warnings."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)

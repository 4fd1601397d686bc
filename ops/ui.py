"""`ui`: MLflow's page on the loopback address. `deliver`: to MLflow, what runs have kept back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.tracking.delivery import deliver_all
from kdcore.errors import Refused
from ops.console import say
from ops.stores import open_store


def ui(store: str | None, port: int) -> int:
    """Serve a store until interrupted; of a server that runs already, only say where it is."""
    uri = open_store(store)
    if uri.startswith("http"):
        say(f"MLflow is served already: {uri}")
        return 0
    say(f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", uri, "--uvicorn-opts", "--log-level critical"]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # nothing here asks for its background jobs
    try:
        return subprocess.run(command, env=quiet, check=False).returncode
    except KeyboardInterrupt:
        return 0


def deliver(folder: str) -> int:
    """Send what the runs in an output folder could not send while their server was away."""
    if not Path(folder).is_dir():
        raise Refused(f"{folder}: no such folder; give the output folder of the runs")
    delivered = deliver_all(Path(folder))
    say(
        f"delivered: {', '.join(delivered)}"
        if delivered
        else f"{folder}: nothing was kept back by a run that has ended"
    )
    return 0

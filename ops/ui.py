"""`ui`: serves MLflow's page on the loopback address. `deliver`: sends MLflow what runs have kept back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.interruption import STATUS, Terminated
from cluster.tracking.delivery import deliver_all
from kdcore.errors import Refused, RunFailed
from ops.console import say
from ops.stores import open_store, runs_link

HOST = "127.0.0.1"
START_SECONDS, END_SECONDS = 300.0, 10.0
FREE_PORTS_TRIED = 100
LINKS_SHOWN = 5

# How an experiment's page lays out its table of runs, where the link to it names this view.
VIEW = "stillhouse"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TAGS, METRICS = ("method", "student", "teacher", "data", "seed"), ("val/top1", "val/agreement")


def ui(store: str | None, port: int) -> int:
    """Serve a store until interrupted; for a server that already runs, only print where it is."""
    uri = open_store(store)
    if uri.startswith("http"):
        say(f"MLflow is served already: {uri}")
        return 0
    require_free(port)
    links = links_of(uri, f"http://{HOST}:{port}")
    try:
        with served(uri, port) as server:
            wait_until_it_answers(server, port)
            say(f"MLflow: http://{HOST}:{port} (Ctrl-C ends it)")
            for link in links:
                say(link)
            return server.wait()
    except KeyboardInterrupt:
        return 0
    except Terminated:
        return STATUS[signal.SIGTERM]


def require_free(port: int) -> None:
    """Refuse a port that another program has, naming the next one that is free."""
    if is_free(port):
        return
    others = range(port + 1, min(port + FREE_PORTS_TRIED, 2**16))
    free = next((f"--port {other}" for other in others if is_free(other)), "another --port")
    raise Refused(f"port {port} is taken by another program, perhaps by another `ui`; end that, or take {free}")


def is_free(port: int) -> bool:
    """Return whether nothing listens on a port of the loopback address."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port stays in use a minute after its server
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def served(uri: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run MLflow's server while the body runs, all of its processes in a group of their own; then end them all."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level critical"]
    env = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,  # not in the command, which every user of the machine may read
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # nothing here asks for its background jobs
    }
    server = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(server.pid, number)
            with suppress(subprocess.TimeoutExpired):
                server.wait(END_SECONDS)


def wait_until_it_answers(server: subprocess.Popen[bytes], port: int) -> None:
    """Wait for MLflow's page. RunFailed where the server ends instead, or does not answer in time."""
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"http://{HOST}:{port}/health"):
            return
        if server.poll() is not None:
            raise RunFailed(f"MLflow's server ended with status {server.returncode}; its own lines are above")
        time.sleep(0.2)
    raise RunFailed(f"MLflow's server does not answer after {START_SECONDS:g} s; try again, or look at its lines above")


def links_of(uri: str, root: str) -> list[str]:
    """Return a line with a link for each of the latest experiments that have runs, their tables of runs laid out."""
    import mlflow

    client = mlflow.MlflowClient(uri)
    found = client.search_experiments(order_by=["last_update_time DESC"])
    with_runs = [one for one in found if client.search_runs([one.experiment_id], max_results=1)]
    columns = [*(f"tags.`{name}`" for name in TAGS), *(f"metrics.`{name}`" for name in METRICS)]
    view = json.dumps({"selectedColumns": columns})
    for one in with_runs:
        if one.tags.get(VIEW_TAG) != view:
            client.set_experiment_tag(one.experiment_id, VIEW_TAG, view)
    return [f"  {one.name}: {runs_link(root, one.experiment_id, VIEW)}" for one in with_runs[:LINKS_SHOWN]]


def deliver(folder: str) -> int:
    """Send what the runs in an output folder could not send while their server was unreachable."""
    if not Path(folder).is_dir():
        raise Refused(f"{folder}: no such folder; give the output folder of the runs")
    delivered = deliver_all(Path(folder))
    say(f"delivered: {', '.join(delivered)}" if delivered else f"{folder}: no ended run has anything left to deliver")
    return 0

"""`ui` and `deliver`, and which store a command means."""

import json
import os
import re
import signal
import socket
import subprocess
import urllib.request

import mlflow
import pytest
from mlflow.cli import server as mlflow_server

from cluster.tracking.folder import RunFolder
from ops.__main__ import main
from ops.history import Run
from ops.stores import open_store, run_link
from ops.ui import is_free, links_of, served
from tests.cluster.servers import free_port, wait_for
from tests.commands import Command


def test_a_folder_is_its_database(finished, store):
    assert open_store(str(finished / "out")) == store


def test_without_a_word_it_is_the_environments(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example.org:5000")
    assert open_store(None) == "http://tracking.example.org:5000"


def test_a_folder_without_runs(tmp_path, capsys):
    assert main(["ui", "--store", str(tmp_path)]) == 2
    assert "has no mlflow.db; give the folder that runs were written to" in capsys.readouterr().err


def test_links():
    assert (
        run_link("http://tracking.example.org:5000/", "3", "abc")
        == "http://tracking.example.org:5000/#/experiments/3/runs/abc"
    )
    assert run_link("sqlite:////runs/mlflow.db", "3", "abc").startswith("http://127.0.0.1:5000/#/")


def test_deliver_with_nothing_to_do(finished, tmp_path, capsys):
    assert main(["deliver", str(finished / "out")]) == 0
    assert "no ended run has anything left to deliver" in capsys.readouterr().out
    assert main(["deliver", str(tmp_path / "nowhere")]) == 2


def test_a_port_that_is_taken_is_refused_with_the_next_free_one(finished, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["ui", "--store", str(finished / "out"), "--port", str(port)]) == 2
    said = re.search(rf"port {port} is taken by another program.* take --port (\d+)", capsys.readouterr().err)
    assert is_free(int(said[1]))


def test_the_links_lead_to_the_training_runs_with_the_columns_that_tell_them_apart(finished, store):
    """The view is a tag of the experiment, which MLflow's page reads by the key in the link."""
    (line,) = links_of(store, "http://127.0.0.1:5000")
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("small")
    address = f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs"
    assert line == f"  small: {address}?workflowType=machine_learning&viewStateShareKey=stillhouse"
    shown = json.loads(experiment.tags["mlflow.sharedViewState.stillhouse"])["selectedColumns"]
    assert shown[:4] == ["tags.`method`", "tags.`student`", "tags.`teacher`", "tags.`data`"]
    run = client.get_run(RunFolder(finished / "out" / "kd-0").read_run_id()).data
    for column in shown:
        kind, name = column.split(".", 1)
        assert name.strip("`") in getattr(run, kind)


def test_numbers_that_no_step_changes_are_no_curves(finished, store):
    """In MLflow tags, and for those who read runs numbers as before."""
    record = mlflow.MlflowClient(store).get_run(RunFolder(finished / "out" / "kd-0").read_run_id())
    assert not [name for name in record.data.metrics if name.startswith("model/")]
    assert Run.of(record).metrics["model/parameters"] == float(record.data.tags["model/parameters"]) > 1000


def test_the_password_of_a_store_is_not_in_the_command_of_its_server(monkeypatch):
    """Commands are there for every user of a machine to read; the environment is not."""
    started = []
    monkeypatch.setattr("ops.ui.subprocess.Popen", lambda words, **options: started.append((words, options)) or Ended())
    uri = "postgresql://me:secret@host/runs"
    with served(uri, 5000):
        (words, options) = started.pop()
    assert "secret" not in " ".join(words)
    option = next(one for one in mlflow_server.params if one.name == "backend_store_uri")
    assert options["env"][option.envvar] == uri


class Ended:
    """A server's process that has ended."""

    pid = 2**30  # which no process has

    def wait(self, seconds: float) -> int:
        return 0


def end(server: Command, number: int) -> None:
    """Signal `ui`, and wait until nothing of its server is left."""
    group = int(subprocess.run(["ps", "-o", "pid=", "--ppid", str(server.pid)], capture_output=True, text=True).stdout)
    server.send_signal(number)
    server.wait(60)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 0), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_the_page_opens_on_the_loopback_address_and_ends_with_its_command(finished, tmp_path, number, status):
    port = free_port()
    words = ["ui", "--store", str(finished / "out"), "--port", str(port)]
    server = Command(words, tmp_path / "output", workers="", env={})
    try:
        line = f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        wait_for(lambda: line in server.said or server.poll() is not None, 300)
        assert line in server.said
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as page:
            assert b"MLflow" in page.read()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ajax-api/3.0/mlflow/ui-telemetry") as answer:
            assert json.load(answer)["disable_ui_telemetry"] is True
    finally:
        end(server, number)
    assert server.returncode == status

"""`ui` and `deliver`, and which store a command means."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from ops.__main__ import main
from ops.stores import open_store, run_link
from tests.cluster.servers import free_port, wait_for

ROOT = Path(__file__).parents[2]


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
    assert "nothing was kept back" in capsys.readouterr().out
    assert main(["deliver", str(tmp_path / "nowhere")]) == 2


@pytest.mark.slow
def test_the_page_opens_on_the_loopback_address(finished, store):
    port = free_port()
    words = ["-m", "ops", "ui", "--store", str(finished / "out"), "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True
    )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as page:
                return b"MLflow" in page.read()
        except OSError:
            return False

    try:
        wait_for(answers, 90)
    finally:
        os.killpg(server.pid, signal.SIGINT)
        assert f"MLflow: http://127.0.0.1:{port}" in server.communicate(timeout=30)[0]

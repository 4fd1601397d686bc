"""Ctrl-C, twice Ctrl-C and SIGTERM: a line, the status that shells expect, soon, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from cluster.interruption import Terminated, ending_on_signals
from cluster.recipe import load_recipe
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from tests.cluster.servers import wait_for
from tests.conftest import small_recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_the_first_signal_is_raised_and_handlers_are_put_back(number: int, raised: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(raised), ending_on_signals():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal, time\nfrom cluster.interruption import ending_on_signals\n"
        "with ending_on_signals():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
        "    finally:\n        os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 130
    assert "ended at once" in done.stderr


def test_another_thread_has_no_signals() -> None:
    entered = []
    thread = threading.Thread(target=lambda: [entered.append(1) for _ in [ending_on_signals().__enter__()]])
    thread.start()
    thread.join()
    assert entered == [1]


class Training:
    """`train` in a process of its own, once it has taken some steps."""

    def __init__(self, recipe: Path) -> None:
        self.config = load_recipe(recipe)
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        command = [sys.executable, "-m", "ops", "train", str(recipe)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.first = self.last_step
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, text=True, start_new_session=True, **pipes)

    def wait_for_steps(self) -> None:
        """Until it has taken some that are new."""
        wait_for(lambda: self.last_step > self.first + 4 or self.process.poll() is not None, 300)

    @property
    def last_step(self) -> int:
        rows = read_journal(RunFolder.of(self.config).metrics)
        return max((row["step"] for row in rows), default=0)

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()

    def end(self, *signals: int) -> tuple[int, str, float]:
        """Exit status, what was said, and seconds from the first signal to the end."""
        self.wait_for_steps()
        began = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.05)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out[-3000:] + err, time.monotonic() - began

    @property
    def status(self) -> str:
        run_id = RunFolder.of(self.config).read_run_id()
        return mlflow.MlflowClient(tracking_uri(self.config)).get_run(run_id).info.status


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_through_ray(image_folder: Path, tmp_path: Path) -> None:
    changes = {"train__epochs": 5000, "train__evaluate_every_epochs": 5000, "checkpoint": {"every_steps": 100_000}}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(image_folder, tmp_path / "out", **changes)))

    with Training(path) as training:
        status, said, seconds = training.end(signal.SIGTERM)
    print(f"SIGTERM: {status} after {seconds:.1f} s")
    assert status == 143, said
    assert "a checkpoint of step" in said
    assert training.status == "KILLED"
    assert list((tmp_path / "out" / "run").glob("step-*/student.safetensors"))
    saved = training.last_step

    with Training(path) as training:
        status, said, seconds = training.end(signal.SIGINT)
    print(f"SIGINT: {status} after {seconds:.1f} s")
    assert status == 130, said
    assert "stillhouse: interrupted; the same command continues from the last checkpoint" in said
    assert f"continuing at step {saved} of" in said
    assert seconds < 30  # 15 to 18 on two cores under a load of 20; MLflow and Ray are closed in them
    assert training.status == "KILLED"

    with Training(path) as training:
        status, said, seconds = training.end(signal.SIGINT, signal.SIGINT)
    print(f"twice SIGINT: {status} after {seconds:.1f} s")
    assert (status, "ended at once" in said) == (130, True), said
    assert seconds < 3

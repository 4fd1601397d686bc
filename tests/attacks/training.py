"""`train` in a process of its own, to be ended by signals in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import yaml

from cluster.recipe.reading import load_recipe
from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from cluster.tracking.mlflow_tracker import tracking_uri
from cluster.training.checkpoint import whole_checkpoints
from tests.cluster.servers import wait_for
from tests.commands import Command
from tests.conftest import small_recipe

ROOT = Path(__file__).parents[2]
NEVER = 100_000
UNHURRIED = ROOT / "tests" / "unhurried.py"
HEARD = "the same signal again ends it at once"


def endless_recipe(image_folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """The file of a recipe whose run neither saves, nor reports, nor ends for a long time."""
    changes |= {"train__epochs": 5000, "train__evaluate_every_epochs": 5000, "checkpoint": {"every_steps": NEVER}}
    changes |= {"tracking__every_steps": NEVER, "tracking__record_batches": True}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe(image_folder, tmp_path / "out", **changes)))
    return path


class Training:
    """A run's process. env: beside this process's, whose RAY_ADDRESS it does not have.

    workers: what Ray is to start workers with; the run's process is then forked, as they are.
    """

    process: Command | subprocess.Popen[bytes]

    def __init__(self, recipe: Path, env: Mapping[str, str] | None = None, workers: str | None = None) -> None:
        self.config = load_recipe(recipe)
        words = ["train", str(recipe), "--plugin", str(UNHURRIED)]
        self.first, self.output = self.last_step, recipe.with_name(f"output-{time.monotonic_ns()}")
        if workers is not None:
            self.process = Command(words, self.output, workers, {"RAY_ADDRESS": None, **(env or {})})
            return
        env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | dict(env or {})
        with self.output.open("w") as file:
            options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            self.process = subprocess.Popen([sys.executable, "-m", "ops", *words], cwd=ROOT, env=env, **options)

    def wait_for_steps(self) -> None:
        """Until it has taken some that are new."""
        wait_for(lambda: self.last_step > self.first + 4 or self.process.poll() is not None, 300)

    @property
    def last_step(self) -> int:
        """The step that it has begun last, as rank 0 records its batches."""
        rows = read_journal(RunFolder.of(self.config).batches(0))
        return max((row["step"] for row in rows), default=0)

    @property
    def saved_steps(self) -> list[int]:
        return [one.step for one in whole_checkpoints(self.config)]

    def __enter__(self) -> Training:
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def said(self) -> str:
        """The end of what it has said, in one line."""
        return " ".join(self.output.read_text()[-4000:].split())

    def end(self, *signals: int) -> tuple[int, str, float]:
        """Exit status, what was said, and seconds from the first signal to the end. Each is sent once the one before it
        was heard: two that come at once are one."""
        self.wait_for_steps()
        assert self.process.poll() is None, f"it ended by itself: {self.said}"
        began = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            wait_for(lambda: HEARD in self.said or self.process.poll() is not None, 60)
        self.process.wait(60)
        print(f"signals {signals}: exit status {self.process.returncode} after {time.monotonic() - began:.1f} s")
        return self.process.returncode, self.said, time.monotonic() - began

    @property
    def status(self) -> str:
        run_id = RunFolder.of(self.config).read_run_id()
        return mlflow.MlflowClient(tracking_uri(self.config)).get_run(run_id).info.status

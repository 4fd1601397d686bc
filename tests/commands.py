"""Commands of a test in processes of their own, forked as are the workers that they start.

Such a process ends as one started by a user does, but for what `atexit` would do: nothing of the project relies on it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ops.benchmarks import attack_processes
from tests.forked_workers import set_up_here
from tests.processes import forking

ROOT = Path(__file__).parents[1]


class Command:
    """`python -m ops WORDS`, under way in a process group of its own; of the interface of `subprocess.Popen`.

    output: the file of what it prints. workers: what Ray is to start its workers with (`worker_executable`). env: what
    its environment has beside this process's, None for what it shall not have.
    """

    def __init__(
        self, words: Sequence[str], output: Path, workers: str, env: Mapping[str, str | None], folder: Path = ROOT
    ) -> None:
        changed = dict(os.environ) | env
        environment = {name: value for name, value in changed.items() if value is not None}
        output.touch()
        self.output = output
        self.process = forking().Process(target=carry_out, args=(list(words), output, workers, environment, folder))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None, "started"
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        self.process.join(seconds)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it with SIGKILL, and return when it has ended."""
        self.send_signal(signal.SIGKILL)
        self.process.join()

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")


def carry_out(words: list[str], output: Path, workers: str, environment: dict[str, str], folder: Path) -> None:
    """Carry out a command in this process; a Ray that it enters or starts has its workers forked."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    fork_workers(workers)
    attack_processes.carry_out(words, str(output))


def fork_workers(workers: str) -> None:
    """Have every Ray session of this process start its workers with an executable."""
    from cluster.nodes import resources

    of_users = resources.runtime_env

    def of_tests(**env_vars: str) -> dict[str, Any]:
        set_up_here()
        return of_users(**env_vars) | {"py_executable": workers}

    resources.runtime_env = of_tests

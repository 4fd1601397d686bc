"""A node whose memory runs out: Ray kills what it has begun last there, and the run goes on, or says why it ended.

The node lies in a memory cgroup of its own, as a container does, so that nothing else here is short of memory. Ray
kills at THRESHOLD of it, so that it comes before the kernel does.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.training.launch import launch
from cluster.training.loop import TrainingLoop
from tests.cluster.machines import ROOT, Loopback, Machines, cluster_of
from tests.cluster.runs import weights
from tests.forked_workers import serving

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

CGROUPS = Path("/sys/fs/cgroup/memory")
LIMIT, THRESHOLD = 3_600_000_000, 0.8  # bytes: two workers, and a gigabyte beside them, and what the kernel leaves Ray
SHARED_LIMIT = 6_000_000_000  # with the driver and the whole of Ray

PLUGIN = '''
"""A worker whose memory grows without end in step 8, so often as the file beside this one says."""
import time
from pathlib import Path
import numpy as np
from cluster.training.loop import TrainingLoop

TIMES, take_step = Path(__file__).parent / "times", TrainingLoop.step

def step(self, *args):
    record = take_step(self, *args)
    if self.run.rank.number == 1 and self.state.step == 8 and (times := int(TIMES.read_text())):
        TIMES.write_text(str(times - 1))
        taken = []
        while True:
            taken.append(np.ones(2_500_000))
            time.sleep(0.05)
    return record

TrainingLoop.step = step
'''


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[list[str]]:
    """What a command begins with that is to have so many bytes of memory, as a container has.

    Skipped where this process may make no cgroup.
    """
    folder = CGROUPS / f"stillhouse-{os.getpid()}-{limit}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit))
    except OSError:
        pytest.skip("needs the right to make a memory cgroup (version 1)")
    enter = f'echo $$ > {folder}/cgroup.procs; mount --bind {folder} {CGROUPS}; exec "$@"'
    try:
        yield ["unshare", "--mount", "sh", "-c", enter, "sh"]
    finally:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:  # until the last of its processes is gone
            for process in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.2)


@pytest.fixture(scope="module")
def node() -> Iterator[Machines]:
    """A node with LIMIT bytes; the process that its workers are forked from lies in them."""
    system = {"memory_monitor_refresh_ms": 100, "memory_usage_threshold": THRESHOLD}
    with (
        cgroup(LIMIT) as within,
        tempfile.TemporaryDirectory(prefix="forks-") as folder,  # a short one, for a socket
        serving(Path(folder), ROOT, within) as executable,
        cluster_of(1, Machines(Loopback(), within, **system), py_executable=executable) as machines,
    ):
        yield machines


BALLOON = f"""
'''A worker that leaves a process behind which takes the node's memory, in step 6, and keeps it for a while.'''
import subprocess, sys
from pathlib import Path
from cluster.training.loop import TrainingLoop

MARK, take_step = Path(__file__).parent / "taken", TrainingLoop.step
CODE = '''
import time
from pathlib import Path
usage, taken = Path("{CGROUPS}/memory.usage_in_bytes"), []
for _ in range(1000):
    while int(usage.read_text()) < 0.88 * {SHARED_LIMIT}:
        taken.append(bytearray(b"x" * 20_000_000))
    time.sleep(0.1)
'''

def step(self, *args):
    record = take_step(self, *args)
    if self.run.rank.number == 1 and self.state.step == 6 and not MARK.exists():
        MARK.touch()
        subprocess.Popen([sys.executable, "-c", CODE], start_new_session=True).wait()
    return record

TrainingLoop.step = step
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Iterator[Path]:
    """The plug-in's file. What it changes is put back at the end: this process imports it, too."""
    path = tmp_path_factory.mktemp("greedy") / "greedy.py"
    path.write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "step", TrainingLoop.step)
        yield path


@pytest.fixture
def greedy(recipe, plugin):
    """A function that gives a run of 12 steps, in which a worker runs out of memory so often."""

    def make(name: str, times: int, max_failures: int) -> RunConfig:
        (plugin.parent / "times").write_text(str(times))
        scaling = {"num_workers": 2, "max_failures": max_failures}
        return parse(recipe(name=name, plugins=[str(plugin)], checkpoint={"every_steps": 4}, scaling=scaling))

    return make


def test_it_goes_on_from_its_checkpoint(node, greedy):
    """With the weights of a run that had memory enough."""
    heard: list[str] = []
    undisturbed = launch(greedy("enough", times=0, max_failures=0))
    started = time.monotonic()
    killed = launch(greedy("short", times=1, max_failures=2), watch=lambda state, messages: heard.extend(messages))
    print(f"one kill: {time.monotonic() - started:.0f} s, undisturbed {undisturbed.wall_seconds:.0f} s")
    print(heard)
    assert any(re.match("continuing at step [48] of 12", line) for line in heard), heard
    said = "a worker failed: " + killed_at(next(iter(node.nodes)), LIMIT)
    assert any(re.match(said, line) for line in heard), heard
    first, second = (weights(run) for run in (undisturbed, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def killed_at(address: str, limit: int) -> str:
    """The line on a death, as a pattern: rank, node, and how much memory of how much was taken.

    Of two workers that came together Ray chooses, and not always the one whose memory grows.
    """
    limit_gb = f"{limit / 2**30:.2f}"
    said = rf"killed by Ray when its node \({re.escape(address)}\) ran out of memory: "
    return rf"rank [01]: {said}[23]\.\d+GB of {re.escape(limit_gb)}GB were taken; take a smaller train.micro_batch"


@pytest.mark.long
def test_the_drivers_node_has_no_memory_left(recipe, tmp_path):
    """Ray kills whatever it can there, the run's controller among it: the command ends with that line, and status 1.

    The same command then goes on from the checkpoint.
    """
    plugin = tmp_path / "balloon.py"
    plugin.write_text(BALLOON)
    config = recipe(plugins=[str(plugin)], scaling={"num_workers": 2}, checkpoint={"every_steps": 4})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(config))
    settings = {"RAY_memory_monitor_refresh_ms": "100", "RAY_memory_usage_threshold": str(THRESHOLD)}
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | settings
    command = [sys.executable, "-m", "ops", "train", str(tmp_path / "recipe.yaml")]

    def run(*within: str) -> subprocess.CompletedProcess[str]:
        options = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "check": False, "timeout": 400}
        return subprocess.run([*within, *command], **options)

    with cgroup(SHARED_LIMIT) as within:
        done = run(*within)
    assert done.returncode == 1, done.stdout + done.stderr
    line = (tmp_path / "out" / "run" / "error.txt").read_text()
    assert re.match("Ray Train's controller, which runs next to the driver, ended: killed by Ray when its node", line)
    assert line in done.stderr
    again = run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continuing at step 4 of 12" in again.stdout

"""A node whose memory runs out: Ray kills what it has begun last there, and the run goes on, or says why it ended.

The node lies in a memory cgroup of its own, as a container does, so that nothing else here is short of memory.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster.config import RunConfig
from cluster.recipe import parse
from cluster.training.launch import RunResult, launch
from cluster.training.loop import TrainingLoop
from tests.cluster.machines import Loopback, Machines, cluster_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

CGROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 3_200_000_000  # bytes: two workers, and a gigabyte beside them

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
            taken.append(np.ones(5_000_000))
            time.sleep(0.05)
    return record

TrainingLoop.step = step
'''


@pytest.fixture(scope="module")
def cgroup() -> Iterator[Path]:
    """A cgroup with LIMIT bytes of memory; skipped where this process may make none."""
    folder = CGROUPS / f"stillhouse-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        pytest.skip("needs the right to make a memory cgroup (version 1)")
    yield folder
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # until the last of its processes is gone
        with contextlib.suppress(OSError):
            return folder.rmdir()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def node(cgroup) -> Iterator[Machines]:
    """A node in that cgroup, which it sees as a container sees its own."""
    enter = f'echo $$ > {cgroup}/cgroup.procs; mount --bind {cgroup} {CGROUPS}; exec "$@"'
    within = ["unshare", "--mount", "sh", "-c", enter, "sh"]
    with cluster_of(1, Machines(Loopback(), within, memory_monitor_refresh_ms=100)) as machines:
        yield machines


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
    assert any(re.match("continuing at step [48] of 12", line) for line in heard), heard
    first, second = (weights(run) for run in (undisturbed, killed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def weights(run: RunResult) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(run.run_dir) / "student.safetensors")

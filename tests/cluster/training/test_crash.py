"""A worker that dies of a signal is reported as that, with the last step: segmentation faults, the OOM killer."""

import os
import re
import signal
import subprocess
import sys

import pytest
import ray

from cluster.nodes.errors import crash_of
from cluster.recipe.reading import parse
from cluster.training.launch import launch
from kdcore.errors import RunFailed

DEAD = ray.exceptions.RayActorError(
    error_msg="The actor is dead because its worker process has died. Worker exit type: ..."
)

CRASHING = """
import signal, threading
import ray

if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
    from cluster.training.loop import TrainingLoop
    from cluster.training.progress import Reporter

    step, update = TrainingLoop.step, Reporter.update

    def tell(self, **state):
        update(self, **state)
        ray.get(self.board.end.remote())  # what a process has not sent yet is lost with it

    Reporter.update = tell

    def crash(self, *args):
        if self.state.step == 4:
            signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)  # to this thread, as a real one
        return step(self, *args)

    TrainingLoop.step = crash
"""


def test_a_signal_with_its_place(tmp_path):
    path = tmp_path / "run" / "crash-0.txt"
    code = f"""
import os, signal
from pathlib import Path
from cluster.training.crash import record_crashes

def fall():
    os.kill(os.getpid(), signal.SIGSEGV)

record_crashes(Path({str(path)!r}))
fall()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.returncode == -signal.SIGSEGV, done.stderr
    found = crash_of(DEAD, path)
    assert found.startswith("the worker's process died of a signal: Segmentation fault in fall (<string>:7)")
    assert str(path) in found


@pytest.mark.parametrize("content", [None, ""])
def test_a_kill_leaves_no_word(tmp_path, content):
    path = tmp_path / "crash-0.txt"
    if content is not None:
        path.write_text(content)
    assert "SIGKILL, which the kernel sends when memory runs out" in crash_of(DEAD, path)
    assert "SIGKILL" in crash_of(DEAD, None)


def test_another_error_is_no_crash(tmp_path):
    assert crash_of(RuntimeError("closed"), tmp_path / "crash-0.txt") is None
    assert crash_of(ray.exceptions.RayActorError(error_msg="The actor is unavailable."), None) is None


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_whose_worker_crashes(ray_cluster, recipe, tmp_path):
    plugin = tmp_path / "crashing.py"
    plugin.write_text(CRASHING)
    changes = {"scaling": {"num_workers": 1, "max_failures": 0}, "plugins": [str(plugin)]}
    with pytest.raises(RunFailed) as failed:
        launch(parse(recipe(**changes)))
    text = str(failed.value)
    assert re.match(
        r"rank 0 on \S+: the worker's process died of a signal: Segmentation fault in crash \(crashing.py:", text
    )
    assert text.endswith("(the last step reported is 4)")

"""A command's process ends at once, with its status, after everything that had to be done before."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, threading, time
from ops.leaving import run_and_leave

class Slow:
    def __del__(self):
        print("taken apart")

kept = Slow()

def command():
    atexit.register(print, "registered")
    threading.Timer(0.1, print, ["thread"]).start()
    print("done")
    {ending}

run_and_leave(command)
"""


def run(ending: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT.format(ending=ending)], capture_output=True, text=True)


def test_what_must_be_done_is_done_and_no_more():
    ended = run("return 3")
    assert (ended.returncode, ended.stdout.split("\n")) == (3, ["done", "thread", "registered", ""])


def test_an_exception_ends_as_python_ends_it():
    ended = run("raise KeyError('lost')")
    assert ended.returncode == 1
    assert "KeyError: 'lost'" in ended.stderr
    assert "taken apart" in ended.stdout


def test_a_reader_that_has_gone_is_no_error():
    command = f"{sys.executable} -E -c 'from ops.leaving import run_and_leave; run_and_leave(lambda: print(1) or 0)'"
    ended = subprocess.run(["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")

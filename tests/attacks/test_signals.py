"""Ctrl-C, twice Ctrl-C and SIGTERM: a line, the status that shells expect, soon, and nothing lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.interruption import Terminated, ending_on_signals
from tests.attacks.training import ROOT, Training, endless_recipe


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


def end_with_checkpoint(recipe: Path, number: int, status: int, word: str, workers: str | None = None) -> None:
    """Have a run end by a signal: at its next step, with a checkpoint that it goes on from."""
    with Training(recipe, workers=workers) as training:
        before = training.saved_steps
        found, said, _ = training.end(number)
        assert found == status, said
        (saved,) = set(training.saved_steps) - set(before)
        assert f"stillhouse: {word}; a checkpoint of step {saved} is written; the same command continues" in said
        assert training.last_step in (saved - 1, saved)  # steps are counted from 0 where they begin
        assert training.status == "KILLED"
        if before:
            assert f"continuing at step {before[-1]} of" in said


def end_at_once(recipe: Path, workers: str) -> None:
    """Have a run that goes on from a checkpoint end by Ctrl-C twice."""
    with Training(recipe, workers=workers) as training:
        begun_from = training.saved_steps[-1]
        status, said, seconds = training.end(signal.SIGINT, signal.SIGINT)
    assert (status, "ended at once" in said) == (130, True), said
    assert seconds < 3
    assert f"continuing at step {begun_from} of" in said


def test_a_run_in_one_process(image_folder: Path, tmp_path: Path) -> None:
    recipe = endless_recipe(image_folder, tmp_path, scaling={"num_workers": 0})
    end_with_checkpoint(recipe, signal.SIGTERM, 143, "terminated")
    end_with_checkpoint(recipe, signal.SIGINT, 130, "interrupted", workers="")  # forked, and has none


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_through_ray(image_folder: Path, tmp_path: Path, worker_executable: str) -> None:
    """By Ctrl-C, and by two; SIGTERM through Ray ends the run of `test_preemption.py`."""
    recipe = endless_recipe(image_folder, tmp_path)
    end_with_checkpoint(recipe, signal.SIGINT, 130, "interrupted", worker_executable)
    end_at_once(recipe, worker_executable)

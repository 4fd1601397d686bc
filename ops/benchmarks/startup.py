"""Processor seconds until a first result: of `show`, of a refusal, and to the end of a run's first step.

A command is started, and polled until the step is done; then its processor seconds, those of all its processes, are
read, and it is ended. Compared, in turns, with `ops.benchmarks.startup_peers`. Index and MLflow's store exist already,
as from a second run on. ResNet-34 > ResNet-18 at 128 pixels, a batch of 32, one thread each.

    python -m ops.benchmarks.startup
    python -m ops.benchmarks.startup --workers 1 2
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import psutil

from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from ops.benchmarks.families import write_images
from ops.benchmarks.startup_peers import BATCH, SIZE, STUDENT, TEACHER
from ops.console import console, say, table
from ops.facts import spread, write

ROOT = Path(__file__).parents[2]
LOOK_SECONDS, PATIENCE_SECONDS = 0.02, 300.0
VALIDATED = 6  # images of each of three classes, on which the teacher is evaluated before the first step
OPS, PEERS = "ops", "ops.benchmarks.startup_peers"


def overrides(images: Path, output: Path, num_workers: int) -> list[str]:
    """Return the overrides that make the recipe `kd` the measured run."""
    return [
        f"data.root={images}",
        "data.held_out=0",
        f"views.size={SIZE}",
        f"student.model={STUDENT}",
        "teacher={model: " + TEACHER + ", random: true}",
        f"train.batch_size={BATCH}",
        f"train.micro_batch={BATCH // max(1, num_workers)}",
        "train.select=last",
        f"scaling.num_workers={num_workers}",
        f"output_dir={output}",
        "tracking.every_steps=1",
    ]


def used(process: psutil.Process) -> float:
    """Return the processor seconds of a process and its descendants, including those that have ended."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])  # its own, and those of children that it has waited for
    return total


def end(process: psutil.Process) -> None:
    """End a process and its descendants, which this script has started."""
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def seconds_until(words: list[str], is_done: Callable[[], bool], status: int = 0) -> float:
    """Return the processor seconds that `python -m words` has used when `is_done` returns True.

    If it never does: those of the whole command, which must end with `status`.
    """
    started = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    process, deadline, found = psutil.Process(started.pid), time.monotonic() + PATIENCE_SECONDS, 0.0
    while time.monotonic() < deadline and not is_done():
        time.sleep(LOOK_SECONDS)
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                started.wait()  # its threads may still be ending
                break
            found = used(process)
    if started.poll() is None:
        found = used(process)
        end(process)
        started.wait()
        return found
    _, errors = started.communicate()
    assert started.returncode == status, f"{words} ended with {started.returncode}: {errors[-500:]}"
    return found


def never() -> bool:
    """Return False: the command runs to its end."""
    return False


def of_run(images: Path, output: Path, num_workers: int) -> float:
    """Return the processor seconds of `train` to the end of its first step.

    Every run has a name of its own: a worker may outlive the last run by a moment, and still write.
    """
    name = f"startup-{uuid4().hex}"
    journal = RunFolder(output / name).metrics

    def has_stepped() -> bool:
        return journal.is_file() and any("train/loss" in row for row in read_journal(journal))

    return seconds_until([OPS, "train", "kd", f"name={name}", *overrides(images, output, num_workers)], has_stepped)


def of_peer(peer: str, words: list[str], folder: Path) -> float:
    """Return the processor seconds of a peer to the end of its first step."""
    stamp = folder / "stamp"
    stamp.unlink(missing_ok=True)
    found = seconds_until([PEERS, peer, *words, str(stamp)], stamp.is_file)
    assert stamp.is_file(), f"{peer} took no step"
    return found


def subjects(folder: Path, workers: list[int]) -> Mapping[str, Callable[[], float]]:
    """Return what is measured, by name: the runs on each number of workers, or without any, what needs no Ray."""
    images = write_images(folder / "images", per_class=40, side=SIZE)
    for unused in (path for path in images.glob("val/*/*") if int(path.stem) >= VALIDATED):
        unused.unlink()
    runs = folder / "runs"
    if workers:
        with_ray = {f"ray, {number}": partial(of_peer, "ray", [str(number)], folder) for number in workers}
        return with_ray | {f"here, {number}": partial(of_run, images, runs, number) for number in workers}
    recipe = overrides(images, runs, 0)
    tap = "method=[{term: feature_mse, weight: 1, pairs: [{student: layer4, teacher: layer5}]}]"
    return {
        "imports": partial(of_peer, "imports", [], folder),
        "show": partial(seconds_until, [OPS, "show", "kd", "--seconds", "0", *recipe], never),
        "wrong tap": partial(seconds_until, [OPS, "train", "kd", *recipe, tap], never, status=2),
        "timm": partial(of_peer, "timm", [str(images)], folder),
        "here": partial(of_run, images, runs, 0),
    }


def main() -> None:
    """Measure all in turns, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="*", default=[], help="instead: of runs on Ray, such as 1 2")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    name = "startup_workers" if args.workers else "startup"
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        measured = subjects(Path(folder), args.workers)
        for turn in range(args.rounds + 1):
            for subject, take in measured.items():
                seconds = take()
                if turn:
                    found.setdefault(subject, []).append(seconds)
            say(f"round {turn}: {', '.join(f'{subject} {values[-1]:.1f}' for subject, values in found.items())}")
            if turn:  # after every round: a run that is cut off leaves whole rounds
                content: dict[str, Any] = {subject: spread(values) for subject, values in found.items()}
                path = write(name, {"load": os.getloadavg()[0], "cpu_seconds": content})
    rows = [[one, f"{median(v):.1f}", f"{min(v):.1f} to {max(v):.1f}"] for one, v in found.items()]
    console.print(table(f"processor seconds, n = {args.rounds}", ["", "median", "range"], rows))
    say(f"written: {path}")


if __name__ == "__main__":
    main()

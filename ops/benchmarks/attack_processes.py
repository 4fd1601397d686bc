"""Commands that are killed at random moments and started again, and pairs of them on one folder.

Each command is a process of its own, forked from one that has imported what they need, so a hundred kills take minutes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from cluster.tracking.folder import RunFolder
from cluster.tracking.journal import read_journal
from ops.__main__ import REFUSED, main

PRELOAD = ["ops.train", "ops.cache", "ops.data", "cluster.training.worker", "cluster.tracking.mlflow_tracker", "mlflow"]
IN_USE = "in use by"
RAY_IS_SLOW = "Ray did not start"
MOST_STARTS = 4
LOSS = "train/loss"
LONGEST_SECONDS = 600.0
Contents = Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A command that leaves something behind.

    words: of the command line, given the folder of its outputs. contents: what it leaves there, in a form that can be
    compared.
    """

    name: str
    words: Callable[[Path], list[str]]
    contents: Contents


class RayIsSlow(Exception):
    """Ray did not start in time, which says nothing about the command: it is to be run again, as its message says."""


class Started:
    """A command under way in a process group of its own."""

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self.words, self.log = list(words), log
        log.touch()
        self.begin = log.stat().st_size  # of its output, after that of others
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.process: BaseProcess = context.Process(target=carry_out, args=(self.words, str(log)))
        self.process.start()

    def wait(self) -> int:
        """Return its exit status. RayIsSlow where it is refused because Ray was not there in time."""
        self.process.join(LONGEST_SECONDS)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"{self.words} did not end in {LONGEST_SECONDS:.0f} s: {self.said()}")
        if self.process.exitcode == REFUSED and RAY_IS_SLOW in self.said():
            raise RayIsSlow(self.words)
        return self.process.exitcode

    @property
    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        """End it, and everything it has started, with SIGKILL."""
        assert self.process.pid is not None, "started"
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group yet, or is gone
            self.process.kill()
        self.process.join()

    def said(self) -> str:
        """Return the end of its output."""
        with self.log.open("rb") as file:
            file.seek(max(self.begin, file.seek(0, os.SEEK_END) - 4000))
            return file.read().decode(errors="replace")


def carry_out(words: list[str], log: str) -> None:
    """Run a command in this process, with its output in a file."""
    os.setsid()
    with Path(log).open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(words))


def run(subject: Subject, folder: Path, log: Path) -> float:
    """Run a command to its end; return the seconds that it took."""
    for _ in range(MOST_STARTS):
        began = time.monotonic()
        started = Started(subject.words(folder), log)
        with suppress(RayIsSlow):
            status = started.wait()
            assert status == 0, f"{subject.name}: exit status {status}: {started.said()}"
            return time.monotonic() - began
    raise AssertionError(f"{subject.name}: Ray did not start in {MOST_STARTS} attempts: {started.said()}")


def kill_and_continue(
    subject: Subject, folder: Path, kills: int, seed: int = 0, until: float = float("inf")
) -> dict[str, Any]:
    """Kill a command at random moments, start it again, and compare its end with an undisturbed one.

    Whenever it ends before the kill, it is compared, and the next one begins in a fresh folder. until: the time after
    which no further kill begins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{subject.name}.log"
    run(subject, folder / "first", log)  # a first start takes longer than later ones
    seconds = run(subject, folder / "undisturbed", log)
    expected = subject.contents(folder / "undisturbed")
    rng, landed, ends, slow_starts, place = np.random.default_rng(seed), 0, 0, 0, folder / "killed-0"
    while landed < kills and time.monotonic() < until:
        began, started = time.monotonic(), Started(subject.words(place), log)
        started.process.join(float(rng.uniform(0, seconds)))
        if started.is_running:
            started.kill()
            landed += 1
            continue
        try:
            assert started.wait() == 0, f"{subject.name}: {started.said()}"
        except RayIsSlow:
            slow_starts += 1
            assert slow_starts < MOST_STARTS, f"{subject.name}: {started.said()}"
            continue
        seconds = min(seconds, time.monotonic() - began)  # it may have been slow before, next to other work
        assert subject.contents(place) == expected, f"{subject.name}: other results after {landed} kills"
        ends += 1
        place = folder / f"killed-{ends}"
    run(subject, place, log)
    assert subject.contents(place) == expected, f"{subject.name}: other results after {landed} kills"
    return {"kills": landed, "results_compared": ends + 1, "slow_starts": slow_starts, "shortest_seconds": seconds}


def pair(first: Subject, second: Subject, folder: Path) -> dict[str, Any]:
    """Start two commands on one folder at once: both finish, or one does and the other is refused as it should be.

    Then each is run again, alone, and the folder must hold what running one after the other leaves.
    """
    logs = [folder / f"{number}.log" for number in (0, 1)]
    folder.mkdir(parents=True, exist_ok=True)
    alone, slow_starts, ends = folder / "alone", 0, None
    while ends is None:
        place = folder / f"together-{slow_starts}"
        try:
            ends = ends_of_both(
                [Started(one.words(place), log) for one, log in zip((first, second), logs, strict=True)]
            )
        except RayIsSlow:
            slow_starts += 1
            assert slow_starts < MOST_STARTS, f"Ray did not start in {MOST_STARTS} attempts"
    for subject, log in zip((first, second), logs, strict=True):
        run(subject, place, log)
        run(subject, alone, log)
    for subject in (first, second):
        assert subject.contents(place) == subject.contents(alone), f"{subject.name} differs"
    return {"exit_statuses": sorted(ends), "slow_starts": slow_starts}


def ends_of_both(both: Sequence[Started]) -> list[int]:
    """Return the exit statuses of commands on one folder: at least one finished, the others did so or were refused."""
    try:
        ends = [one.wait() for one in both]
    finally:
        for one in both:
            if one.is_running:
                one.kill()
    for one, end in zip(both, ends, strict=True):
        is_refused = end == REFUSED and IN_USE in one.said()
        assert end == 0 or is_refused, f"{one.words}: exit status {end}: {one.said()}"
    assert 0 in ends, f"all were refused: {both[0].said()}"
    return ends


def digests(folder: Path, pattern: str) -> dict[str, str]:
    """Return {relative path: digest} of the files below a folder whose names match a pattern.

    Without leases, and without what killed writers have left, which is never read.
    """
    found = sorted(path for path in folder.rglob(pattern) if path.is_file() and is_read(path))
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def is_read(path: Path) -> bool:
    """Return whether a file is ever read, and is not a copy of MLflow's under a random name."""
    return path.suffix != ".tmp" and not path.name.startswith(".") and "artifacts" not in path.parts


def of_cache(folder: Path) -> dict[str, Any]:
    """Return what a build leaves: every byte of the cache."""
    return digests(folder / "cache", "*")


def of_index(folder: Path) -> dict[str, Any]:
    """Return what an index leaves: every byte of its files."""
    return digests(folder / "index", "*")


def of_pack(folder: Path) -> dict[str, Any]:
    """Return what packing leaves: every byte of its shards and indexes."""
    return digests(folder / "pack", "*.arrow")


def of_runs(folder: Path) -> dict[str, Any]:
    """Return what runs leave, a sweep's trials too: their weights, and the loss of every step in their journals."""
    losses = {
        path.relative_to(folder).as_posix(): [(row["step"], row[LOSS]) for row in read_journal(path) if LOSS in row]
        for path in folder.rglob(RunFolder(folder).metrics.name)
    }
    return digests(folder, RunFolder(folder).weights.name) | losses

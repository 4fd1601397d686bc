"""Many runs and many steps in one process: what they leave behind in it, as slopes over runs and over steps."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from cluster.recipe import parse
from cluster.training.launch import launch

FEWEST = 4  # samples of a slope
WARM_UP = 0.5  # of the samples: caches and connections of libraries fill in them
Say = Callable[[str], None]


def footprint() -> dict[str, float]:
    """Return what this process holds: memory and shared memory in MiB, open files, threads, child processes.

    Without what the C library keeps of memory that was given back to it, which it would hand out again.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    shared = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss_Shmem")]
    return {
        "memory_mib": process.memory_full_info().uss / 2**20,
        "shared_memory_mib": sum(int(line.split()[1]) for line in shared) / 2**10,
        "open_files": sum(not link.endswith(".ttf") for link in open_files()),
        "open_fonts": sum(
            link.endswith(".ttf") for link in open_files()
        ),  # matplotlib keeps them by thread, 64 at most
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def open_files() -> list[str]:
    """Return what this process has open, as the system names it."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            found.append(str(link.readlink()))
    return found


def slope(at: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return the slope of values by least squares with its 95 % interval, after the warm-up, and the first and last."""
    begin = math.ceil(len(at) * WARM_UP)
    x, y = np.asarray(at[begin:], float), np.asarray(values[begin:], float)
    fit = stats.linregress(x, y)
    half = 0.0 if np.ptp(y) == 0 else float(fit.stderr * stats.t.ppf(0.975, max(1, len(x) - 2)))
    return {"n": len(x), "slope": float(fit.slope), "plus_minus": half, "first": float(y[0]), "last": float(y[-1])}


def slopes(at: Sequence[float], samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the slope of everything that was sampled."""
    return {name: slope(at, [sample[name] for sample in samples]) for name in samples[0]}


def many_runs(recipe: dict[str, Any], number: int, say: Say = print, until: float = float("inf")) -> dict[str, Any]:
    """Train a recipe under so many names, one after the other, in this process.

    until: the time after which no further run begins, but for the few that a slope takes.
    """
    samples: list[dict[str, float]] = []
    for run in range(number):
        if len(samples) >= FEWEST and time.monotonic() > until:
            break
        launch(parse(recipe | {"name": f"run-{run:03d}"}))
        samples.append(footprint())
        say(f"run {run + 1} of {number}: {samples[-1]}")
    return {"runs": len(samples), "by_run": slopes(range(len(samples)), samples)}


def many_steps(recipe: dict[str, Any], steps: int, every: int, say: Say = print) -> dict[str, Any]:
    """Train one run of so many steps in this process, and look at it every so often."""
    seen: dict[int, dict[str, float]] = {}

    def watch(state: dict[str, Any], messages: list[str]) -> None:
        step = state.get("step", 0)
        if step and step // every > len(seen):
            seen[step] = footprint()

    train = recipe["train"] | {"epochs": 10**6, "max_steps": steps, "evaluate_every_epochs": 10**6}
    launch(parse(recipe | {"name": f"steps-{steps}", "train": train}), watch)
    say(f"{steps} steps: {seen[max(seen)]}")
    by_step = slopes(list(seen), list(seen.values()))
    return {"steps": steps, "by_1000_steps": {name: per_thousand(one) for name, one in by_step.items()}}


def per_thousand(found: dict[str, float]) -> dict[str, float]:
    """Return a slope a step as one a thousand steps."""
    return found | {name: found[name] * 1000 for name in ("slope", "plus_minus")}

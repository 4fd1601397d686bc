"""Many runs and many steps in one process: what they leave behind in it, as slopes over runs and over steps.

python -m ops.benchmarks.attack_soak
"""

from __future__ import annotations

import ctypes
import gc
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from cluster.recipe.reading import parse
from cluster.training.launch import launch
from ops.benchmarks.families import write_images
from ops.console import say
from ops.facts import write

RUNS, STEPS, EVERY = 30, 2000, 50
WARM_UP = 0.5  # of the samples: caches and connections of libraries fill in them
Say = Callable[[str], None]


class MemoryOfMalloc(ctypes.Structure):
    """What glibc's `mallinfo2` returns, in bytes.

    uordblks: in use; hblkhd: in use, by blocks large enough to be mapped separately; fordblks: free.
    """

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def recipe_of(images: Path, output: Path) -> dict[str, Any]:
    """Return the recipe of a small run in one process, with a teacher that may be cached."""
    return {
        "name": "run",
        "output_dir": str(output),
        "data": {"root": str(images), "num_threads": 1, "held_out": 0.2, "loader": "reference"},
        "views": {"size": 16, "crop": "resized", "scale": [0.3, 1.0], "num_views": 2},
        "student": {"model": "cifar_resnet8", "args": {"widths": [4, 4, 8, 16]}},
        "teacher": {"model": "cifar_resnet8", "random": True},
        "method": [{"term": "kd", "weight": 1.0, "temperature": 4.0}],
        "optimizer": {"opt": "sgd", "lr": 0.05},
        "train": {"epochs": 3, "batch_size": 8},
        "scaling": {"num_workers": 0},
        "checkpoint": {"every_steps": 2},
        "tracking": {"system_metrics": False, "every_steps": 2},
    }


def footprint() -> dict[str, float]:
    """Return what this process holds: memory and shared memory in MiB, open files, threads, child processes.

    memory_mib is the system's figure, after glibc has given back all wholly free pages. Of it, allocated_mib is still
    held, and free_mib lies in fragments between, for reuse: a leak makes the first grow, fragmentation the second.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    libc.mallinfo2.restype = MemoryOfMalloc
    malloc = libc.mallinfo2()
    process = psutil.Process()
    shared = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Pss_Shmem")]
    return {
        "memory_mib": process.memory_full_info().uss / 2**20,
        "allocated_mib": (malloc.uordblks + malloc.hblkhd) / 2**20,
        "free_mib": malloc.fordblks / 2**20,
        "shared_memory_mib": sum(int(line.split()[1]) for line in shared) / 2**10,
        "open_files": sum(not link.endswith(".ttf") for link in open_files()),
        "open_fonts": sum(
            link.endswith(".ttf") for link in open_files()
        ),  # matplotlib keeps them by thread, 64 at most
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def open_files() -> list[str]:
    """Return what this process has open, by the system's names."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own
            found.append(str(link.readlink()))
    return found


def slope(at: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return the least-squares slope of values after the warm-up, with its 95 % interval and the first and last."""
    begin = math.ceil(len(at) * WARM_UP)
    x, y = np.asarray(at[begin:], float), np.asarray(values[begin:], float)
    fit = stats.linregress(x, y)
    half = 0.0 if np.ptp(y) == 0 else float(fit.stderr * stats.t.ppf(0.975, max(1, len(x) - 2)))
    return {"n": len(x), "slope": float(fit.slope), "plus_minus": half, "first": float(y[0]), "last": float(y[-1])}


def slopes(at: Sequence[float], samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the slope of every sampled quantity."""
    return {name: slope(at, [sample[name] for sample in samples]) for name in samples[0]}


def many_runs(recipe: dict[str, Any], number: int, say: Say = print) -> dict[str, Any]:
    """Train a recipe under `number` names, one after the other, in this process."""
    samples: list[dict[str, float]] = []
    for run in range(number):
        launch(parse(recipe | {"name": f"run-{run:03d}"}))
        samples.append(footprint())
        say(f"run {run + 1} of {number}: {samples[-1]}")
    return {"runs": len(samples), "by_run": slopes(range(len(samples)), samples)}


def many_steps(recipe: dict[str, Any], steps: int, every: int, say: Say = print) -> dict[str, Any]:
    """Train one run of `steps` steps in this process, and sample the process every `every` steps."""
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
    """Return a slope per step as one per thousand steps."""
    return found | {name: found[name] * 1000 for name in ("slope", "plus_minus")}


def main() -> None:
    """Run both in one process, one after the other, and write the results."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        recipe = recipe_of(write_images(Path(folder) / "images", per_class=16, side=32), Path(folder) / "soak")
        runs = many_runs(recipe, RUNS, say)
        steps = many_steps(recipe | {"checkpoint": {"every_steps": 200}}, STEPS, EVERY, say)
    say(f"written: {write('soak', {'many_runs': runs, 'many_steps': steps})}")


if __name__ == "__main__":
    main()

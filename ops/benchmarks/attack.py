"""The long attacks: a hundred kills, and pairs of processes on one folder.

    python -m ops.benchmarks.attack --minutes 25

What must hold is asserted: the log says how often it was tried, and what was measured. The short versions are tests
(`tests/attacks/test_load.py`). Every command runs on the CPU; sweeps start Ray. What many runs leave behind in one
process is measured by `ops.benchmarks.attack_soak`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ops.benchmarks.attack_processes import Subject, kill_and_continue, of_cache, of_index, of_pack, of_runs, pair
from ops.benchmarks.attack_soak import recipe_of
from ops.benchmarks.families import write_images
from ops.console import say
from ops.facts import write

KILLS = {"index": 10, "pack": 10, "build": 10, "train": 60, "sweep": 10}  # a hundred
PAIRS = (("build", "build"), ("train", "train"), ("pack", "pack"), ("sweep", "sweep"), ("sweep", "train"))


def subjects(folder: Path, images: Path) -> dict[str, Subject]:
    """Return the commands to attack, by name. folder: for their recipes."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, space = folder / "recipe.yaml", folder / "space.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(images, folder / "elsewhere")))
    space.write_text("name: lrs\nspace: {optimizer.lr: [0.02, 0.05, 0.1]}\n")

    def here(*words: str) -> Callable[[Path], list[str]]:
        return lambda at: [*words, f"output_dir={at}"]

    return {
        "index": Subject("index", lambda at: ["data", "show", str(images), "--index", str(at / "index")], of_index),
        "pack": Subject(
            "pack",
            lambda at: ["data", "pack", str(images), "-o", str(at / "pack"), "--index", str(at / "index")],
            of_pack,
        ),
        "build": Subject(
            "build",
            lambda at: ["cache", "build", str(recipe), f"cache.dir={at / 'cache'}", f"output_dir={at}"],
            of_cache,
        ),
        "train": Subject("train", here("train", str(recipe)), of_runs),
        "sweep": Subject("sweep", here("sweep", str(recipe), "--space", str(space), "--concurrent", "1"), of_runs),
    }


def attempts(folder: Path, until: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return all attacks by name, the longest last."""
    images = write_images(folder / "images", per_class=16, side=32)
    known = subjects(folder, images)
    return {
        **{
            f"pair_{first}_{second}": partial(pair, known[first], known[second], folder / f"{first}-{second}")
            for first, second in PAIRS
        },
        **{
            f"kills_{name}": partial(kill_and_continue, known[name], folder / f"kills-{name}", kills, until=until)
            for name, kills in KILLS.items()
        },
    }


def log_of(tried: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the log of the attacks tried so far."""
    return {"kills": sum(one.get("kills", 0) for one in tried.values()), "attacks": tried}


def main() -> None:
    """Try everything, as far as the time allows, and write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="no attack begins later (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="attacks to try (default: all); writes no result")
    args = parser.parse_args()
    began = time.monotonic()
    until = began + 60 * args.minutes
    tried: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="attack-", ignore_cleanup_errors=True) as folder:
        for name, attempt in attempts(Path(folder), until).items():
            if args.only and name not in args.only:
                continue
            if time.monotonic() > until:
                tried[name] = {"left_out": f"{args.minutes:g} minutes were over"}
                continue
            start = time.monotonic()
            tried[name] = attempt() | {"seconds": time.monotonic() - start}
            say(f"{name}: {tried[name]}")
            if not args.only:
                write("attack", log_of(tried))
    log = log_of(tried)
    say(f"{log['kills']} kills, {len(tried)} attacks in {(time.monotonic() - began) / 60:.1f} minutes")
    if not args.only:
        say(f"written: {write('attack', log)}")


if __name__ == "__main__":
    main()

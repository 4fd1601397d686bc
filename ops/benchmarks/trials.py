"""What a trial of a sweep takes beyond its training: its processes, networks and loaders, validation, and its record.

Sweeps of TRIALS learning rates of a ResNet-20 at 32 pixels, one at a time, from the command to the table. A trial's
share is the sweep's time since its first run began, divided by the number of trials, less the mean time of the trials'
steps; also what comes before the first run, which a sweep pays once. All are wall seconds.

    python -m ops.benchmarks.trials
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from ops.__main__ import main as ops_main
from ops.benchmarks.small_run import image_folder, recipe
from ops.console import say
from ops.facts import spread, write

TRIALS, STEPS = 4, 50


def sweep(folder: Path, number: int) -> dict[str, Any]:
    """Run a sweep by the command, and return the content of its file."""
    space, path = folder / f"space-{number}.yaml", folder / "recipe.yaml"
    rates = [0.01 * (1 + trial) for trial in range(TRIALS)]
    space.write_text(yaml.safe_dump({"name": f"rates-{number}", "space": {"optimizer.lr": rates}}))
    content = recipe(folder, "run", 1, max_steps=STEPS, epochs=STEPS)
    content["data"] |= {"held_out": 0.1}  # by which a sweep compares
    path.write_text(yaml.safe_dump(content))
    assert ops_main(["sweep", str(path), "--space", str(space), "--concurrent", "1"]) == 0
    found: dict[str, Any] = json.loads((folder / "out" / f"rates-{number}" / "sweep.json").read_text())
    return found


def beyond_training(content: dict[str, Any]) -> float:
    """Return the seconds of a trial beyond its steps, from a sweep's file."""
    trials = [trial for point in content["points"] for trial in point["trials"]]
    share = (content["seconds"] - content["before_the_first_run_seconds"]) / len(trials)
    return float(share - mean(trial["result"]["train_seconds"] for trial in trials))


def main() -> None:
    """Run the sweeps, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="sweeps (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        image_folder(folder / "images")
        found = [sweep(folder, number) for number in range(args.rounds)]
    content = {
        "trials": TRIALS,
        "steps": STEPS,
        "load": os.getloadavg()[0],
        "seconds": {
            "beyond training": spread([beyond_training(one) for one in found]),
            "before the first run": spread([one["before_the_first_run_seconds"] for one in found]),
        },
    }
    say(f"written: {write('trials', content)}: {content['seconds']}")


if __name__ == "__main__":
    main()

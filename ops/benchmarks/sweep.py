"""What one cache saves a sweep: the same twelve trials with the teacher's outputs read from it, and computed online.

Temperature x weight of the feature term x pairing of layers on the digits, with successive halving; two runs at a time,
each on one core. The seconds are of whole sweeps, from the command to the table: Ray's start, the build of the cache
and the start of every trial's process included. With two runs at a time, which of them are stopped depends on which is
faster, so the number of trained epochs is given, too.

    python -m ops.benchmarks.sweep
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from cluster.recipe.reading import to_yaml
from ops.__main__ import main as ops_main
from ops.benchmarks.pair import student_recipe
from ops.console import console, table
from ops.facts import write

METHOD = [
    {"term": "ce", "weight": 0.1},
    {"term": "kd", "weight": 0.9, "temperature": 4.0},
    {"term": "feature_mse", "weight": 0.1, "pairs": [{"student": "layer3", "teacher": "layer3"}]},
]
SPACE = {"temperature": [1, 4], "method.2.weight": [0.1, 1.0], "layers": {"ranked": 3, "images": 500}}
STOP = {"rule": "asha", "grace_epochs": 2, "reduction_factor": 2}
EPOCHS = 8


def sweep(source: str, recipe: Path, output: Path) -> dict[str, Any]:
    """Run one sweep by the command; return its seconds and how its runs ended."""
    content: dict[str, Any] = {"name": f"sweep-{source}", "space": SPACE, "teacher": source, "stop": STOP}
    shutil.rmtree(output / content["name"], ignore_errors=True)  # an earlier measurement
    space = output / f"{source}.yaml"
    space.write_text(yaml.safe_dump(content))
    started = time.perf_counter()
    assert ops_main(["sweep", str(recipe), "--space", str(space), "--concurrent", "2"]) == 0
    seconds = time.perf_counter() - started
    found = json.loads((output / f"sweep-{source}" / "sweep.json").read_text())
    trials = [trial for point in found["points"] for trial in point["trials"]]
    return {
        "seconds": seconds,
        "before_the_first_run_seconds": found["before_the_first_run_seconds"],
        "trials": len(trials),
        "stopped": sum(trial["end"] == "stopped" for trial in trials),
        "failed": sum(trial["end"] == "failed" for trial in trials),
        "epochs": sum(trial["curve"][-1]["epoch"] for trial in trials),
        "best": found["points"][0]["point"],
        "best_held_out_top1": found["points"][0]["mean"],
    }


def main() -> None:
    """Run the sweeps one after the other, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/sweep-benchmarks")
    output = Path(parser.parse_args().output).absolute()
    output.mkdir(parents=True, exist_ok=True)
    changes = [f"method={json.dumps(METHOD)}", f"train.epochs={EPOCHS}"]
    recipe = output / "recipe.yaml"
    recipe.write_text(to_yaml(student_recipe(output, *changes)))
    rows = {source: sweep(source, recipe, output) for source in ("cache", "online")}
    ratio = rows["online"]["seconds"] / rows["cache"]["seconds"]
    per_epoch = {source: row["seconds"] / row["epochs"] for source, row in rows.items()}
    path = write(
        "sweep",
        {
            "n": 1,
            "space": SPACE,
            "epochs": EPOCHS,
            "views": EPOCHS,
            "teacher": "cifar_resnet20",
            "rows": rows,
            "online_over_cached_seconds": ratio,
            "online_over_cached_seconds_per_epoch": per_epoch["online"] / per_epoch["cache"],
        },
    )
    names = ("seconds", "before_the_first_run_seconds", "trials", "stopped", "epochs", "best_held_out_top1")
    console.print(table("12 trials", ["", *rows], [[n, *(f"{row[n]:,.4g}" for row in rows.values())] for n in names]))
    console.print(f"online / cached: {ratio:.2f}; written: {path}")


if __name__ == "__main__":
    main()

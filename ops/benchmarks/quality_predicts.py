"""Does Q predict? The quality of a teacher's layer against the student that was distilled from that layer alone.

Digits, a ResNet-20 as teacher, the demo's small student; the student's last map imitates each of the teacher's layers
in turn (`feature_only`: no label reaches the backbone). Reported: Spearman's rank correlation over the layers between Q
and the mean accuracy over seeds, with a bootstrap interval over layers and seeds; and that of the layer's depth, which
Q has to beat to be worth measuring.

    python -m ops.benchmarks.quality_predicts
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cluster.recipe.reading import parse, validated
from cluster.sweep.config import SweepConfig
from cluster.sweep.journal import Trial
from cluster.sweep.plan import SweepPlan
from cluster.sweep.run import build_caches
from cluster.sweep.space import LAYERS, LayerScores
from cluster.training.launch import launch
from ops.benchmarks.pair import student_recipe
from ops.console import console, table
from ops.facts import spread, write
from ops.layers import score
from ops.rank_correlation import interval, spearman

METHOD = [
    {"term": "feature_only", "weight": 1.0, "pairs": [{"student": "layer3.0", "teacher": "layer3.0"}]},
    {"term": "ce", "weight": 1.0},
]


def single_layers(output: Path, seeds: int, epochs: int) -> SweepPlan:
    """Return a sweep over every single layer of the teacher, with one cache, built if necessary."""
    cache = {"dir": str(output / "quality-cache"), "features": "int8"}
    changes = [f"method={json.dumps(METHOD)}", f"train.epochs={epochs}", f"train.evaluate_every_epochs={epochs}"]
    recipe = student_recipe(output, *changes, "views.num_views=2", f"cache={json.dumps(cache)}")
    scores = score(recipe, num_images=1000)
    sweep = {"name": "quality", "space": {LAYERS: {"ranked": len(scores.quality)}}, "seeds": list(range(seeds))}
    plan = SweepPlan(recipe, validated(SweepConfig, sweep, "sweep"), scores)
    build_caches(plan, None)
    return plan


def accuracies(plan: SweepPlan, jobs: int) -> dict[str, list[float]]:
    """Return {teacher's layer: validation top-1 of its students}, one per seed; `jobs` at a time, without Ray."""
    runs = [(number, point, seed) for number, point in enumerate(plan.examples) for seed in plan.sweep.seeds]
    configs = [plan.config(Trial(f"{number:03d}-seed{seed}", number, point, seed)) for number, point, seed in runs]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(train_one, [config.model_dump(mode="json") for config in configs]))
    accuracy: dict[str, list[float]] = {}
    for (_, point, _), top1 in zip(runs, found, strict=True):
        accuracy.setdefault(point[LAYERS][0]["teacher"], []).append(top1)
    return accuracy


def train_one(config: dict[str, Any]) -> float:
    """Train one student in this process; return its top-1 on the validation images."""
    data = config | {"tracking": config["tracking"] | {"uri": f"sqlite:///{config['output_dir']}/{config['name']}.db"}}
    return launch(parse(data)).metrics["val/top1"]


def main() -> None:
    """Train a student from every layer, and write and print how well quality predicts its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--output", default="outputs/sweep-benchmarks")
    args = parser.parse_args()
    plan = single_layers(Path(args.output).absolute(), args.seeds, args.epochs)
    assert plan.scores is not None
    report(plan.scores, accuracies(plan, args.jobs), args)


def report(scores: LayerScores, accuracy: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Print the table and the correlations, and write the file."""
    taps = list(scores.quality)
    values = np.array([accuracy[tap] for tap in taps])
    predictors = {
        "Q": [scores.quality[tap].q for tap in taps],
        "S": [scores.quality[tap].separation for tap in taps],
        "depth": list(range(len(taps))),
    }
    found: dict[str, Any] = {
        name: {
            "spearman": spearman(np.array(p, dtype=float), values.mean(axis=1)),
            "interval_95": interval(np.array(p, dtype=float), values),
        }
        for name, p in predictors.items()
    }
    rows: dict[str, dict[str, Any]] = {
        tap: {"q": scores.quality[tap].q, "separation": scores.quality[tap].separation, "top1": spread(accuracy[tap])}
        for tap in taps
    }
    content = {"layers": len(taps), "seeds": args.seeds, "epochs": args.epochs, "teacher": "cifar_resnet20"}
    path = write("quality_predicts", {**content, "student_tap": "layer3.0", "rows": rows, "correlation": found})
    shown = [
        [tap, f"{row['q']:.4f}", f"{row['top1']['mean']:.2%} ± {row['top1']['stdev'] or 0:.2%}"]
        for tap, row in rows.items()
    ]
    console.print(table(f"n = {args.seeds} seeds", ["teacher's layer, in depth order", "Q", "student's top-1"], shown))
    for name, one in found.items():
        low, high = one["interval_95"]
        console.print(f"Spearman of {name} with top-1: {one['spearman']:+.2f} (95 % [{low:+.2f}, {high:+.2f}])")
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()

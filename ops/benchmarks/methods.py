"""Each method on one small pair: equal steps, equal seeds, one table.

The demo's digits and teacher (`make demo` first), the demo's student of a quarter of its width. The hyper-parameters
are those that the methods' papers use for their smallest CIFAR-100 pair (ResNet-56 to ResNet-20), not tuned here. The
table shows how the methods behave on this pair at this length, not which is best.

    python -m ops.benchmarks.methods --jobs 2
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from ops.console import console, table
from ops.facts import spread, write

WARM = {"warmup_epochs": 2 / 3}  # as 20 of 240 epochs
CE, LITTLE_CE = {"term": "ce", "weight": 1.0}, {"term": "ce", "weight": 0.1}
PAIRS = [{"student": f"layer{i}", "teacher": f"layer{i}"} for i in (1, 2, 3)]
# WKD has no such small pair: those of ResNet-32x4 to 8x4, where weights begin to decay after 150 of 240 epochs.
TARGET = {"term": "nkd", "weight": 1.0, "non_target_weight": 0.0}
WKD_L = {"term": "wkd_l", "weight": 200.0, "temperature": 8.0, "decay_from_epoch": 5.0}
WKD_F = {"term": "wkd_f", "weight": 0.08, "mean_weight": 8.0, "decay_from_epoch": 5.0}
METHODS: dict[str, list[dict[str, Any]]] = {
    "alone": [CE],
    "kd": [LITTLE_CE, {"term": "kd", "weight": 0.9, "temperature": 4.0}],
    "dkd": [CE, {"term": "dkd", "weight": 1.0, "temperature": 4.0, "non_target_weight": 2.0}],
    "dist": [CE, {"term": "dist", "weight": 2.0, "temperature": 4.0}],
    "rld": [CE, {"term": "rld", "weight": 1.0, "temperature": 4.0, "correlation_weight": 8.0, **WARM}],
    "lskd": [LITTLE_CE, {"term": "lskd", "weight": 9.0, "temperature": 2.0}],
    "dkd + lskd": [
        CE,
        {"term": "dkd", "weight": 12.0, "temperature": 3.0, "non_target_weight": 2.0, "standardise": True, **WARM},
    ],
    "mlkd + lskd": [
        LITTLE_CE,
        {"term": "mlkd", "weight": 9.0, "temperatures": [2.0, 2.0, 3.0, 5.0, 6.0], "standardise": True},
    ],
    "ttm": [CE, {"term": "ttm", "weight": 7.0, "gamma": 0.3}],
    "wttm": [CE, {"term": "wttm", "weight": 1.5, "gamma": 0.3}],
    "wttm + itrd": [
        CE,
        {"term": "wttm", "weight": 5.0, "gamma": 0.5},
        {"term": "itrd", "weight": 1.0, "alpha": 1.01},
    ],
    "itrd": [CE, {"term": "itrd", "weight": 1.0, "alpha": 1.01}],
    "wkd_l": [CE, TARGET, WKD_L],
    "wkd_f": [CE, WKD_F],
    "wkd_l + wkd_f": [CE, TARGET, WKD_L, WKD_F],
    "simkd": [{"term": "simkd", "weight": 1.0}],
    "feature_only": [CE, {"term": "feature_only", "weight": 1.0, "pairs": PAIRS}],
    "feature_only + ce": [CE, {"term": "feature_mse", "weight": 1.0, "pairs": PAIRS}],
}


def train_one(method: str, seed: int, epochs: int, output: str) -> dict[str, float]:
    """Train one run in this process; return its final metrics and the parameters of the deployed network."""
    from cluster.recipe.paths import absolute
    from cluster.recipe.reading import load_recipe, parse
    from cluster.training.launch import launch

    safe = method.replace(" + ", "-")
    base = load_recipe(Path(__file__).parents[1] / "recipes/demo/alone.yaml")
    data = base.model_dump(mode="json") | {"name": f"{safe}-seed{seed}", "output_dir": output, "seed": seed}
    data |= {"method": METHODS[method], "scaling": {"num_workers": 0}}
    data["data"] |= {"images_per_class": None}  # the demo's student sees few; here all see what the teacher saw
    data["train"] |= {"epochs": epochs, "evaluate_every_epochs": epochs, "batch_size": 64, "micro_batch": 32}
    data["tracking"] |= {"system_metrics": False, "every_steps": 50, "uri": f"sqlite:///{output}/{safe}-{seed}.db"}
    if method == "simkd":
        data["student"] |= {"classifier": "reused", "factor": 2}
    config = absolute(parse(data), Path.cwd())
    result = launch(config)
    return {"top1": result.metrics["val/top1"], "agreement": result.metrics["val/agreement"], **deployed_size(config)}


def deployed_size(config: Any) -> dict[str, float]:
    """Return the number of parameters of the deployed network."""
    import torch

    from cluster.assembly import assemble
    from cluster.rank import Rank
    from kdcore.reused import deployed_parameters

    return {"parameters": deployed_parameters(assemble(config, Rank(0, 1, torch.device("cpu"))).student)}


def main() -> None:
    """Train every method with every seed, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--output", default="outputs/methods")
    args = parser.parse_args()
    Path(args.output).mkdir(parents=True, exist_ok=True)
    output = str(Path(args.output).absolute())
    places = [(method, seed) for seed in range(args.seeds) for method in METHODS]
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {place: pool.submit(train_one, *place, args.epochs, output) for place in places}
        found = {place: future.result() for place, future in futures.items()}
    rows: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        runs = [found[method, seed] for seed in range(args.seeds)]
        rows[method] = {name: spread([run[name] for run in runs]) for name in ("top1", "agreement")}
        rows[method]["parameters"] = runs[0]["parameters"]
    path = write("methods", {"epochs": args.epochs, "teacher": "cifar_resnet8", "terms": METHODS, "rows": rows})
    shown = [
        [m, *(f"{r[k]['mean']:.2%} ± {r[k]['stdev'] or 0:.2%}" for k in ("top1", "agreement")), f"{r['parameters']:,}"]
        for m, r in rows.items()
    ]
    title = f"digits, {args.epochs} epochs, n = {args.seeds} seeds (mean ± standard deviation)"
    console.print(table(title, ["method", "top-1", "agreement with teacher", "deployed parameters"], shown))
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()

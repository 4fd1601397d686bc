"""`capacity`: what a recipe would take on a cluster, as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from kdcore.errors import Refused
from ops import catalog
from ops.capacity.estimate import Estimate
from ops.capacity.options import OPTIONS
from ops.console import console, duration, percent, say, table

if TYPE_CHECKING:
    from cluster.recipe.config import RunConfig
    from ops.capacity.workload import Answer

GPUS_OF_A_NODE = 8


def capacity(
    recipe: str,
    overrides: Sequence[str],
    gpus: int,
    nodes: int | None,
    seconds: float,
    as_json: bool,
    values: Sequence[tuple[str, float]],
) -> int:
    """Print what a recipe takes on that many GPUs. values: (name, value) of the `OPTIONS` that are given.

    Wrong arguments are refused before the networks' libraries are imported.
    """
    num_nodes = nodes_of(gpus, nodes)
    given = dict(values)
    for name, value in given.items():
        OPTIONS[name].check(value)
    config = on_workers(recipe, overrides, gpus)
    from ops.capacity.workload import answer

    found = answer(config, num_nodes, given, seconds)
    if as_json:
        print(json.dumps(as_values(config, found), indent=1))
    else:
        print_answer(config, found)
    return 0


def nodes_of(gpus: int, nodes: int | None) -> int:
    """Return the number of nodes: as given, else as few as possible. Refused where the GPUs do not divide evenly."""
    if gpus < 1:
        raise Refused(f"--gpus {gpus}: a run takes at least 1")
    number = -(-gpus // GPUS_OF_A_NODE) if nodes is None else nodes
    if number < 1 or gpus % number:
        raise Refused(f"{gpus} GPUs cannot be spread evenly over {number} nodes; give a --nodes that divides --gpus")
    return number


def on_workers(recipe: str, overrides: Sequence[str], gpus: int) -> RunConfig:
    """Return a recipe with a worker on each GPU. Refused where it would not train, or they cannot share its batch."""
    from cluster.recipe.rules import check_may_be_trained  # only here: it imports torch

    config = catalog.load_here(recipe, [*overrides, f"scaling.num_workers={gpus}", "scaling.gpus_per_worker=1"])
    check_may_be_trained(config)
    return config


def as_values(config: RunConfig, found: Answer) -> dict[str, Any]:
    """Return the answer as plain values, in the units that their names state."""
    estimate, sizes = found.estimate, found.sizes
    names = (
        "images_per_second",
        "scaling_efficiency",
        "compute_seconds",
        "all_reduce_seconds",
        "read_seconds",
        "step_seconds",
        "mtbf_seconds",
        "interval_seconds",
        "young_seconds",
        "daly_seconds",
        "num_failures",
        "too_many_failures",
        "goodput",
        "best_goodput",
        "wall_seconds",
        "gpu_hours",
    )
    inputs = {
        name: {"value": value, "source": found.values.source(name)}
        for name in OPTIONS
        if (value := found.values.get(name)) is not None
    }
    return {
        "recipe": config.name,
        "gpus": estimate.cluster.num_workers,
        "nodes": estimate.cluster.num_nodes,
        "inputs": inputs,
        "workload": asdict(estimate.workload),
        "sizes": asdict(sizes) | {"memory_bytes": sizes.memory_bytes},
        "estimate": {name: getattr(estimate, name) for name in names} | {"cost": cost(found)},
        "sweep_trial_bytes": found.trial_bytes,
    }


def cost(found: Answer) -> float | None:
    """Return the mean cost of a run; None where no price is given."""
    price = found.values.get("cost_per_gpu_hour")
    return None if price is None else price * found.estimate.gpu_hours


def print_answer(config: RunConfig, found: Answer) -> None:
    """Print the inputs, each with its source, and the results."""
    cluster = found.estimate.cluster
    rows = [
        [
            name.replace("_", " "),
            f"{value:,.12g}" if value == int(value) else f"{value:,.1f}",
            found.values.source(name),
        ]
        for name in OPTIONS
        if (value := found.values.get(name)) is not None
    ]
    console.print(table("from", ["", "", "source"], rows))
    title = f"{config.name} on {cluster.num_workers:,} GPUs of {cluster.num_nodes:,} nodes"
    console.print(table(title, ["", ""], [*speed_rows(found.estimate), *byte_rows(found), *failure_rows(found)]))
    if share := found.estimate.too_many_failures:
        say(
            f"scaling.max_failures={config.scaling.max_failures} would end {percent(share)} of such runs early; "
            "give scaling.max_failures=-1"
        )


def speed_rows(estimate: Estimate) -> list[list[str]]:
    """Return steps, their parts, and what each node reads."""
    workload = estimate.workload
    bound = "reading" if estimate.read_seconds >= estimate.step_seconds else "computing"
    return [
        ["steps", f"{workload.total_steps:,} of {workload.batch_size:,} images"],
        ["images/s", f"{estimate.images_per_second:,.0f}, bound by {bound}"],
        ["scaling efficiency", percent(estimate.scaling_efficiency)],
        ["step", milliseconds(estimate.step_seconds)],
        ["  forward and backward", milliseconds(estimate.compute_seconds)],
        ["  ring all-reduce, not overlapped", milliseconds(estimate.all_reduce_seconds)],
        ["  reading, in parallel", milliseconds(estimate.read_seconds)],
        ["images read, a node and second", decimal(int(estimate.node_images_per_second * workload.image_bytes))],
        ["cache read, a node and second", decimal(int(estimate.node_images_per_second * workload.cached_bytes))],
    ]


def byte_rows(found: Answer) -> list[list[str]]:
    """Return the memory of a GPU, and the size and times of a checkpoint."""
    sizes = found.sizes
    written = sizes.checkpoint_bytes / 1e6 / found.values["write_mb_per_second"]
    return [
        ["memory of a GPU", decimal(sizes.memory_bytes)],
        ["  weights, and the teachers'", f"{decimal(sizes.weights_bytes)}, {decimal(sizes.teacher_bytes)}"],
        ["  gradients, in DDP's buckets", decimal(sizes.gradient_bytes)],
        ["  optimiser, moving average", f"{decimal(sizes.optimizer_bytes)}, {decimal(sizes.ema_bytes)}"],
        ["  kept for the backward pass, float32", decimal(sizes.activation_bytes)],
        ["checkpoint", decimal(sizes.checkpoint_bytes)],
        ["  blocks training for", milliseconds(found.estimate.workload.checkpoint_seconds)],
        ["  written meanwhile in", milliseconds(written)],
        ["memory of a sweep's driver, a run at a time", decimal(found.trial_bytes)],
    ]


def failure_rows(found: Answer) -> list[list[str]]:
    """Return failures, the intervals of checkpoints, goodput, hours and cost."""
    estimate = found.estimate
    failures, wall = estimate.num_failures, estimate.wall_seconds
    goodput, best = estimate.goodput, estimate.best_goodput
    rows = [
        ["a failure every", duration(estimate.mtbf_seconds)],
        ["failures of a run", f"{failures['mean']:,.1f} ± {failures['stdev']:,.1f}"],
        ["a checkpoint every", duration(estimate.interval_seconds)],
        ["  best, by Young; by Daly", f"{duration(estimate.young_seconds)}; {duration(estimate.daly_seconds)}"],
        ["goodput", f"{percent(goodput['mean'])} ± {percent(goodput['stdev'])}"],
        ["  with Daly's interval", f"{percent(best['mean'])} ± {percent(best['stdev'])}"],
        ["hours", f"{wall['mean'] / 3600:,.2f} ± {wall['stdev'] / 3600:,.2f}"],
        ["GPU hours", f"{estimate.gpu_hours:,.1f}"],
    ]
    price = cost(found)
    return rows if price is None else [*rows, ["cost", f"{price:,.0f}"]]


def milliseconds(seconds: float) -> str:
    """Return seconds in milliseconds."""
    return f"{1e3 * seconds:,.1f} ms"

"""`demo`: the main job in a few minutes. A teacher, the student alone, the same student distilled, and a table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.recipe import absolute, load_recipe
from cluster.resources import ray_session
from cluster.tracking.folder import RunFolder
from cluster.training.launch import RunResult
from kdcore.errors import Refused
from ops.console import console, percent, say, table
from ops.digits import write_digits
from ops.latency import measure_networks
from ops.train import mlflow_hint, watched

LATENCY_SECONDS = 1.0

RECIPES = Path(__file__).parent / "recipes"


def demo(data: str | None, teacher: str | None, seeds: int, output: str, changes: Sequence[str] = ()) -> int:
    """Run the three jobs, the two students once a seed, and print the table.

    changes: overrides of every recipe.
    """
    if seeds < 1:
        raise Refused(f"--seeds {seeds}: at least one")
    if teacher and not data:
        raise Refused("--teacher names a network for your own images; give --data FOLDER too")
    if data:
        folder, overrides = "folder", [f"data.root={Path(data).absolute()}"]
        overrides_teacher = [f"student.model={teacher}", "student.pretrained=true"] if teacher else []
    else:
        say("writing the digits")
        root = write_digits(Path(output) / "digits")
        folder, overrides, overrides_teacher = "demo", [f"data.root={root.absolute()}"], []
    overrides += [f"output_dir={Path(output).absolute()}", *changes]

    def recipe(name: str, *more: str) -> RunConfig:
        return absolute(load_recipe(RECIPES / folder / f"{name}.yaml", [*overrides, *more]), Path.cwd())

    first = recipe("teacher", *overrides_teacher)
    theirs = [f"teacher.model={first.student.model}", f"teacher.checkpoint={RunFolder.of(first).weights}"]
    results: dict[str, list[RunResult]] = {"teacher": [], "student alone": [], "student distilled": []}
    with ray_session(first):
        results["teacher"].append(run(first))
        for seed in range(seeds):
            for title, name in (("student alone", "alone"), ("student distilled", "distilled")):
                results[title].append(run(recipe(name, *theirs, f"seed={seed}", f"name={name}-seed{seed}")))
    networks = networks_of(recipe("distilled", *theirs), Path(results["student distilled"][0].run_dir))
    rows = [
        row(title, runs, networks["teacher" if title == "teacher" else "student"]) for title, runs in results.items()
    ]
    console.print(table(title_of(first, seeds), COLUMNS, rows))
    say(verdict(results))
    if len(networks) == 2:
        say(comparison(networks))
    say(mlflow_hint(first))
    return 0


COLUMNS = ["", "top-1", "agreement", "parameters", "ms/image", "images/s", "wall s"]

Network = dict[str, Any]  # a row of `benchmark`


def run(config: RunConfig) -> RunResult:
    """Run one job with its progress on the console."""
    command = f"python -m ops train {RunFolder.of(config).recipe}"
    return watched(config, command)


def title_of(config: RunConfig, seeds: int) -> str:
    """Return the title of the table: data, workers, cores, seeds."""
    images = f"{config.data.name}, {config.scaling.num_workers} workers, {os.cpu_count()} cores"
    return f"{images}, {seeds} seed{'s' if seeds > 1 else ''} (mean, and half the range)" if seeds > 1 else images


def networks_of(config: RunConfig, run_dir: Path) -> dict[str, Network]:
    """Return {student, teacher}, as far as they can be measured: what each costs here, one image at a time in torch."""
    rows = measure_networks(config, RunFolder(run_dir).weights, [1], ["torch"], LATENCY_SECONDS)
    return {row["network"]: row for row in rows}


def comparison(networks: dict[str, Network]) -> str:
    """Say in a sentence how much smaller and faster than the teacher the student is."""
    student, teacher = networks["student"], networks["teacher"]
    return (
        f"the student has 1/{teacher['parameters'] / student['parameters']:.1f} of the teacher's parameters and "
        f"answers {teacher['p50_ms'] / student['p50_ms']:.1f} times as fast, one image at a time"
    )


def row(title: str, runs: list[RunResult], network: Network | None) -> list[str]:
    """Return the table's row of one recipe's runs. network: None where it could not be measured."""
    compared = "val/agreement" in runs[0].metrics
    return [
        title,
        mean_and_half_range([r.metrics["val/top1"] for r in runs], percent),
        mean_and_half_range([r.metrics["val/agreement"] for r in runs], percent) if compared else "-",
        f"{network['parameters']:,}" if network else "-",
        f"{network['p50_ms']:.2f}" if network else "-",
        mean_and_half_range([r.images_per_second for r in runs], "{:,.0f}".format),
        mean_and_half_range([r.wall_seconds for r in runs], "{:.0f}".format),
    ]


def mean_and_half_range(values: list[float], show: Any) -> str:
    """Return the mean, with half the range where there are several values."""
    mean = show(statistics.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {show((max(values) - min(values)) / 2)}"


def verdict(results: dict[str, list[RunResult]]) -> str:
    """Say whether distillation helped, in a sentence that claims no more than the seeds show."""
    alone, distilled = ([r.metrics["val/top1"] for r in results[f"student {how}"]] for how in ("alone", "distilled"))
    gain = statistics.mean(distilled) - statistics.mean(alone)
    said = f"distillation changed the student's top-1 by {gain * 100:+.2f} points"
    if len(alone) == 1:
        return f"{said} (one seed: run with --seeds 3 to see the noise)"
    apart = min(distilled) > max(alone)
    return f"{said}; the worst distilled seed is {'above' if apart else 'not above'} the best of those alone"

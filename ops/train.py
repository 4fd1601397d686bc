"""`train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.config import RunConfig
from cluster.recipe import absolute
from cluster.training.launch import RunResult, launch
from ops import catalog
from ops.console import RunView, percent, say


def train(recipe: str, overrides: Sequence[str]) -> int:
    """Trains a recipe to its end and prints its result."""
    config = absolute(catalog.load(recipe, overrides), Path.cwd())
    command = shlex.join(["python", "-m", "ops", "train", recipe, *overrides])
    result = watched(config, command)
    say(summary(result))
    say(f"student: {result.run_dir}/student.safetensors")
    say(mlflow_hint(config))
    return 0


def watched(config: RunConfig, command: str) -> RunResult:
    """One run with its progress on the console."""
    continuing = (config.run_dir / "recipe.yaml").exists()
    if (config.run_dir / "result.json").exists():
        say(
            f"{config.name}: finished already, in {config.run_dir}; delete that folder, or give name=..., to run afresh"
        )
    elif continuing:
        say(f"{config.name}: continuing the run in {config.run_dir}")
    else:
        say(f"{config.name}: a new run in {config.run_dir}")
    with RunView(config.name) as view:
        return launch(config, watch=view, command=command)


def summary(result: RunResult) -> str:
    metrics = result.metrics
    parts = [f"{result.name}: top-1 {percent(metrics['val/top1'])}, top-5 {percent(metrics['val/top5'])}"]
    if "val/agreement" in metrics:
        parts.append(f"agreement with the teacher {percent(metrics['val/agreement'])}")
    parts.append(f"{result.images_per_second:,.0f} images/s, {result.wall_seconds:.0f} s from start to end")
    return "; ".join(parts)


def mlflow_hint(config: RunConfig) -> str:
    """The line that opens the MLflow page."""
    uri = config.tracking.uri
    served = uri is not None and uri.startswith("http")
    return f"MLflow: {uri}" if served else f"MLflow: .venv/bin/python -m ops ui --store {uri or config.output_dir}"

"""`train`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.config import RunConfig
from cluster.tracking.folder import RunFolder
from cluster.training.launch import RunResult, launch
from ops import catalog
from ops.console import RunView, percent, say
from ops.replay import print_replay


def train(recipe: str, overrides: Sequence[str], replay: int | None) -> int:
    """Train a recipe to its end and print its result; or look at one step of its run once more."""
    config = catalog.load_here(recipe, overrides)
    if replay is not None:
        return print_replay(config, replay)
    command = shlex.join(["python", "-m", "ops", "train", recipe, *overrides])
    result = watched(config, command)
    say(summary(result))
    say(f"student: {RunFolder(Path(result.run_dir)).weights}")
    say(mlflow_hint(config))
    return 0


def watched(config: RunConfig, command: str) -> RunResult:
    """Run to the end, with the progress on the console."""
    lines = {
        "finished": "finished already, in {}; delete that folder, or give name=..., to run afresh",
        "unfinished": "continuing the run in {}",
        "new": "a new run in {}",
    }
    say(f"{config.name}: {lines[RunFolder.of(config).state()].format(config.run_dir)}")
    with RunView(config.name) as view:
        return launch(config, watch=view, command=command)


def summary(result: RunResult) -> str:
    metrics = result.metrics
    parts = [result.name]
    if "val/top1" in metrics:  # where the validation images have labels
        parts = [f"{result.name}: top-1 {percent(metrics['val/top1'])}, top-5 {percent(metrics['val/top5'])}"]
    if "val/agreement" in metrics:
        parts.append(f"agreement with the teacher {percent(metrics['val/agreement'])}")
    parts.append(f"{result.images_per_second:,.0f} images/s, {result.wall_seconds:.0f} s from start to end")
    return "; ".join(parts)


def mlflow_hint(config: RunConfig) -> str:
    """Return the line that opens the MLflow page."""
    uri = config.tracking.uri
    served = uri is not None and uri.startswith("http")
    return f"MLflow: {uri}" if served else f"MLflow: .venv/bin/python -m ops ui --store {uri or config.output_dir}"

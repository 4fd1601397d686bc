"""`train`: trains a recipe, or resumes its run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.recipe.config import RunConfig
from cluster.scores import in_words
from cluster.tracking.folder import RunFolder
from cluster.training.check import check_run
from ops import catalog
from ops.console import RunView, percent, say

if TYPE_CHECKING:
    from cluster.training.launch import RunResult

STATES = {
    "finished": "finished already, in {}; delete that folder, or give name=..., to run it again",
    "unfinished": "continuing the run in {}",
    "new": "a new run in {}",
}


def train(recipe: str, overrides: Sequence[str], replay: int | None) -> int:
    """Train a recipe to its end and print its result; or replay one step of its run."""
    config = catalog.load_here(recipe, overrides)
    if replay is not None:
        from ops.replay import print_replay

        return print_replay(config, replay)
    command = shlex.join(["python", "-m", "ops", "train", recipe, *overrides])
    result = watched(config, command)
    say(summary(result))
    say(f"student: {RunFolder(Path(result.run_dir)).weights}")
    say(mlflow_hint(config))
    return 0


def watched(config: RunConfig, command: str) -> RunResult:
    """Run to the end, with progress on the console; what can be refused at once is refused before Ray is imported."""
    folder = RunFolder.of(config)
    folder.refuse_another(config)
    state, images = folder.state(), None
    with RunView(config.name) as view:
        if state != "finished":
            view.wait_for("data and networks")
            images = check_run(config)
        say(f"{config.name}: {STATES[state].format(config.run_dir)}")
        view.wait_for("workers" if config.scaling.num_workers else "the first step")
        from cluster.training.launch import launch  # which imports Ray

        return launch(config, watch=view, command=command, images=images)


def summary(result: RunResult) -> str:
    metrics = result.metrics
    shown = in_words(metrics, "val/")
    if "val/knn_top1" in metrics:
        shown = ", ".join(filter(None, [shown, f"nearest neighbours' top-1 {percent(metrics['val/knn_top1'])}"]))
    parts = [f"{result.name}: {shown or 'trained'}"]
    if "val/agreement" in metrics:
        parts.append(f"agreement with the teacher {percent(metrics['val/agreement'])}")
    parts.append(f"{result.images_per_second:,.0f} images/s, {result.wall_seconds:.0f} s from start to end")
    return "; ".join(parts)


def mlflow_hint(config: RunConfig) -> str:
    """Return the line that opens the MLflow page."""
    uri = config.tracking.uri
    if uri is not None and uri.startswith("http"):
        return f"MLflow: {uri}"
    return "MLflow: " + shlex.join([".venv/bin/python", "-m", "ops", "ui", "--store", uri or config.output_dir])

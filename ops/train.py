"""`train` and `evaluate`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from cluster.assembly import Assembly, assemble
from cluster.config import RunConfig, absolute
from cluster.passes import evaluate
from cluster.rank import Rank
from cluster.train import RunResult, launch
from ops import catalog
from ops.console import RunView, console, percent, say, table


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
    from cluster.tracking import tracking_uri

    return f"MLflow: .venv/bin/mlflow ui --backend-store-uri {tracking_uri(config)}"


def evaluate_run(run: str, overrides: Sequence[str]) -> int:
    """Prints the accuracy of a run's student and of its teacher; of the teacher alone for a recipe."""
    folder = Path(run)
    weights = folder / "student.safetensors" if folder.is_dir() else None
    if weights is not None and not weights.is_file():
        raise ValueError(f"{run}: no student.safetensors, so this run is not finished; continue it with train")
    recipe = folder / "recipe.yaml" if weights else run
    config = absolute(catalog.load(recipe, overrides), Path.cwd())
    if weights is None and config.teacher is None:
        raise ValueError(f"{run}: the recipe has no teacher to evaluate; give a run's folder instead")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = assemble(config, Rank(0, 1, device))
    console.print(table(f"{config.data.root} ({config.data.val_split})", COLUMNS, evaluation_rows(parts, weights)))
    return 0


COLUMNS = ["network", "images", "top-1", "top-5", "nll (nats)", "agreement", "KL (nats)"]


def evaluation_rows(parts: Assembly, weights: Path | None) -> list[list[str]]:
    """A row for the teacher, if there is one, and one for the student, if there are weights."""
    loader, images, rank = parts.evaluation_loader("val"), len(parts.indexes["val"]), parts.rank
    rows, teacher_logits = [], None
    if answers := parts.teacher_on("val", loader):
        metrics, teacher_logits = answers
        rows.append(_row("teacher", metrics))
    if weights is not None:
        parts.student.load_state_dict(safetensors.torch.load_file(weights))
        rows.append(_row("student", evaluate(parts.student, loader, images, rank, teacher_logits)))
    return rows


def _row(name: str, metrics: dict[str, float]) -> list[str]:
    kl = f"{metrics['kl']:.4f}" if "kl" in metrics else "-"
    return [
        name,
        f"{metrics['images']:,}",
        percent(metrics["top1"]),
        percent(metrics["top5"]),
        f"{metrics['nll']:.4f}",
        percent(metrics.get("agreement")),
        kl,
    ]

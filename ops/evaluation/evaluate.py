"""`evaluate`: every measure of a student's answers, next to its teacher's."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.evaluation import Findings, evaluate_networks, find_target, with_online_teacher
from cluster.recipe.config import RunConfig
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import mlflow_errors_as_refusals
from cluster.tracking.mlflow_tracker import open_store, tracking_uri
from kdcore.evaluation import report
from ops.console import console, percent, say, table
from ops.evaluation.figures import alignment, confusion, reliability
from ops.evaluation.image_names import changed_views, name_images
from ops.evaluation.subjects import find_subject
from pipelines.data.variants import Target
from pipelines.files import make_folder, write_json

COLUMNS = {  # {metric: its heading}; a table shows those that its networks have
    "images": "images",
    "top1": "top-1",
    "top5": "top-5",
    "class_mean_top1": "per class",
    "mAP": "mAP",
    "f1": "F1",
    "nll": "nll (nats)",
    "ece": "ECE",
    "agreement": "agreement",
    "agreement_top5": "top-5 overlap",
    "kl": "KL (nats)",
}
IN_NATS = ("nll", "kl")
MAX_ROWS_SHOWN = 8  # rows of the tables of classes and of confusions


def evaluate(run: str, recipe: str | None, data: str | None, variant: str | None, overrides: Sequence[str]) -> int:
    """Print and write the evaluation of a run, of a file of weights, or of a recipe's teacher."""
    subject = find_subject(run, recipe, overrides)
    config = with_online_teacher(subject.config)
    target = find_target(config, data, variant)
    findings = evaluate_networks(config, subject.weights, target)
    folder = RunFolder(subject.folder.parent)
    images = name_images(config, folder, target, data, variant)
    content = {**describe(findings, target, images), "views": changed_views(config, folder)}
    show(content)
    paths = write(content, subject.folder, images)
    say(f"written: {', '.join(map(str, paths))}")
    if subject.run_id is not None:
        log_to_mlflow(config, subject.run_id, content, paths)
    return 0


def describe(findings: Findings, target: Target, images: str) -> dict[str, Any]:
    """Return all findings as plain values for JSON."""
    content = report(findings.student, findings.teacher, list(target.classes))
    cka = findings.cka.result() if findings.cka.images else {}
    sides = {side: [tap for tap in findings.cka.widths if tap.startswith(side)] for side in ("student", "teacher")}
    return {
        "images": images,
        "data": str(target.index.root),
        "fingerprint": target.index.fingerprint,
        **content,
        "cka": [
            {"student": ours.split(" ", 1)[1], "teacher": theirs.split(" ", 1)[1], "cka": cka[ours, theirs]}
            for ours in sides["student"]
            for theirs in sides["teacher"]
        ],
    }


def show(content: dict[str, Any]) -> None:
    """Print the tables."""
    shown = [name for name in COLUMNS if any(name in metrics for metrics in content["metrics"].values())]
    rows = [network_row(name, metrics, shown) for name, metrics in content["metrics"].items()]
    headings = ["network", *(COLUMNS[name] for name in shown)]
    console.print(table(f"{content['data']} ({content['images']})", headings, rows))
    judged = next(iter(content["metrics"]))
    worst = [row for row in content["classes"] if row[judged]["images"]]
    worst = sorted(worst, key=lambda row: rate_of_class(row[judged]) or 0.0)[:MAX_ROWS_SHOWN]
    headings = ["class", "images", *content["metrics"]]
    console.print(table(f"the {judged}'s worst classes", headings, [class_row(row) for row in worst]))
    pairs = [
        [f"{p['label']} taken for {p['prediction']}", f"{p['images']:,}"] for p in content["confusions"].get(judged, ())
    ]
    if pairs:
        console.print(table(f"the {judged}'s worst confusions", ["classes", "images"], pairs[:MAX_ROWS_SHOWN]))
    if content["cka"]:
        rows = [[p["student"], p["teacher"], f"{p['cka']:.3f}"] for p in content["cka"]]
        console.print(table("linear CKA of the tapped layers", ["student", "teacher", "CKA"], rows))


def network_row(name: str, metrics: dict[str, Any], shown: Sequence[str]) -> list[str]:
    """Return a network's row of the table of metrics."""
    return [name, *(metric_text(metric, metrics.get(metric)) for metric in shown)]


def metric_text(metric: str, value: float | None) -> str:
    """Return a metric as text; '-' for a network without it."""
    if value is None or metric == "images":
        return "-" if value is None else f"{value:,}"
    return f"{value:.4f}" if metric in IN_NATS else percent(value)


def rate_of_class(found: dict[str, Any]) -> float | None:
    """Return the accuracy on a class's images, or its average precision where an image may show several classes."""
    rate: float | None = found["average_precision"] if "average_precision" in found else found["accuracy"]
    return rate


def class_row(row: dict[str, Any]) -> list[str]:
    """Return a class's row of the table of accuracies; its number of images is the same for every network."""
    found = [value for name, value in row.items() if name != "class"]
    return [row["class"], f"{found[0]['images']:,}", *(percent(rate_of_class(one)) for one in found)]


def write(content: dict[str, Any], folder: Path, images: str) -> list[Path]:
    """Write <images>.json and its pictures; return their paths."""
    make_folder(folder, "--output")
    path = folder / f"{images}.json"
    write_json(path, content)
    paths = [path]
    if content["reliability"]:
        paths.append(reliability(content, folder / f"{images}-reliability.png"))
    paths += [confusion(content, name, folder / f"{images}-{name}-classes.png") for name in content["confusion_matrix"]]
    if len(content["cka"]) > 1:
        paths.append(alignment(content["cka"], folder / f"{images}-cka.png"))
    return paths


def log_to_mlflow(config: RunConfig, run_id: str, content: dict[str, Any], paths: list[Path]) -> None:
    """Log the evaluation on the run's own page in MLflow.

    Refused where the server does not answer; the files are already written.
    """
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    prefixes = {"student": "", "teacher": "teacher_"}
    metrics = [
        Metric(f"evaluation/{content['images']}/{prefixes[network]}{name}", float(value), now, 0)
        for network, values in content["metrics"].items()
        for name, value in values.items()
        if math.isfinite(value)
    ]
    with mlflow_errors_as_refusals(
        tracking_uri(config), f"the results are in {paths[0]}: evaluate again when it is back"
    ):
        client = open_store(config)
        client.log_batch(run_id, metrics=metrics)
        for path in paths:
            client.log_artifact(run_id, str(path), "evaluation")

"""`evaluate`: all there is to say about a student's answers, beside its teacher's."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import RunConfig
from cluster.evaluation import Findings, evaluate_networks, find_target, with_online_teacher
from cluster.recipe import absolute
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_tracker import mlflow_errors_as_refusals, tracking_uri
from kdcore.errors import Refused
from kdcore.evaluation import report
from ops import catalog
from ops.console import console, percent, say, table
from ops.evaluation_figures import alignment, confusion, reliability
from pipelines.data.variants import Target
from pipelines.files import make_folder, write_json

WEIGHTS = (".safetensors", ".pt", ".pth", ".tar", ".bin")
COLUMNS = {  # {metric: its heading}; a table has those that its networks have
    "images": "images",
    "top1": "top-1",
    "top5": "top-5",
    "mAP": "mAP",
    "f1": "F1",
    "nll": "nll (nats)",
    "ece": "ECE",
    "agreement": "agreement",
    "agreement_top5": "top-5 overlap",
    "kl": "KL (nats)",
}
IN_NATS = ("nll", "kl")
SHOWN = 8  # rows of the tables of classes and of confusions


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and where the results go."""

    config: RunConfig
    weights: Path | None
    """The student's weights; None: the recipe's teacher alone is evaluated."""
    folder: Path
    """Where results go."""
    run_id: str | None = None
    """The run in MLflow that the weights are of, if any."""


def evaluate(name: str, recipe: str | None, data: str | None, variant: str | None, overrides: Sequence[str]) -> int:
    """Print and write the evaluation of a run, of a file of weights, or of a recipe's teacher."""
    subject = find_subject(name, recipe, overrides)
    config = with_online_teacher(subject.config)
    target = find_target(config, data, variant)
    findings = evaluate_networks(config, subject.weights, target)
    images = variant or Path(data or config.data.val_split).name
    content = describe(findings, target, images)
    show(content)
    paths = write(content, subject.folder, images)
    say(f"written: {', '.join(map(str, paths))}")
    if subject.run_id is not None:
        log_to_mlflow(config, subject.run_id, content, paths)
    return 0


def find_subject(name: str, recipe: str | None, overrides: Sequence[str]) -> Subject:
    """Return what a word on the command line names.

    Refused where something belonging to it is missing.
    """
    path = Path(name)
    if not path.is_dir() and path.suffix not in WEIGHTS:
        require_recipe(recipe or name)
        config = catalog.load_here(recipe or name, overrides)
        if not config.all_teachers:
            raise Refused(f"{name}: the recipe has no teacher to evaluate; give a run's folder instead")
        return Subject(config, None, Path(config.output_dir) / "evaluation" / Path(name).stem)
    run = RunFolder(path if path.is_dir() else path.parent)
    weights = run.weights if path.is_dir() else path
    if not weights.is_file():
        raise Refused(f"{name}: no {weights.name}, so this run is not finished; continue it with train")
    beside = [RunFolder(folder).recipe for folder in weights.absolute().parents[:2]]
    found = recipe or next((str(file) for file in beside if file.is_file()), None)
    if found is None:
        raise Refused(f"{name}: no recipe.yaml beside it; say how the network is built: --recipe RECIPE")
    loaded = catalog.load(found, overrides)
    # A run is in the store that its folder names, whatever the environment names today.
    tracking = loaded.tracking.model_copy(update={"uri": loaded.tracking.uri or run.read_store()})
    return Subject(
        absolute(loaded, Path.cwd()).model_copy(update={"tracking": tracking}),
        weights.absolute(),
        path / "evaluation" if path.is_dir() else path.parent / f"{path.stem}-evaluation",
        run.read_run_id() if path.is_dir() else None,
    )


def require_recipe(name: str) -> None:
    """Refuse a word that names neither a recipe nor anything else to look at, with the runs that are near."""
    if Path(name).suffix in (".yaml", ".yml") or name in catalog.names():
        return
    here = Path(name).parent if Path(name).parent.is_dir() else Path()
    runs = sorted(file.parent.as_posix() for file in [*here.glob("*/recipe.yaml"), *here.glob("outputs/*/recipe.yaml")])
    near = difflib.get_close_matches(Path(name).as_posix(), runs, n=3, cutoff=0.3)
    hint = f"did you mean {', '.join(near)}?" if near else "give the folder of a run, as `train` has said it"
    raise Refused(f"{name}: there is no such run, file of weights, or recipe; {hint}")


def describe(findings: Findings, target: Target, images: str) -> dict[str, Any]:
    """Return everything that was found, as plain values for JSON."""
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
    worst = sorted(worst, key=lambda row: rate_of_class(row[judged]) or 0.0)[:SHOWN]
    console.print(table(f"the {judged}'s worst classes", ["class", *content["metrics"]], [class_row(r) for r in worst]))
    pairs = [
        [f"{p['label']} taken for {p['prediction']}", f"{p['images']:,}"] for p in content["confusions"].get(judged, ())
    ]
    if pairs:
        console.print(table(f"the {judged}'s worst confusions", ["classes", "images"], pairs[:SHOWN]))
    if content["cka"]:
        rows = [[p["student"], p["teacher"], f"{p['cka']:.3f}"] for p in content["cka"]]
        console.print(table("linear CKA of the tapped layers", ["student", "teacher", "CKA"], rows))


def network_row(name: str, metrics: dict[str, Any], shown: Sequence[str]) -> list[str]:
    """Return a network's row of the table of metrics."""
    return [name, *(metric_text(metric, metrics.get(metric)) for metric in shown)]


def metric_text(metric: str, value: float | None) -> str:
    """Return a metric in words; '-' where a network has none."""
    if value is None or metric == "images":
        return "-" if value is None else f"{value:,}"
    return f"{value:.4f}" if metric in IN_NATS else percent(value)


def rate_of_class(found: dict[str, Any]) -> float | None:
    """Return how well a class is found: the share of its images, or its average precision where images show several."""
    rate: float | None = found["average_precision"] if "average_precision" in found else found["accuracy"]
    return rate


def class_row(row: dict[str, Any]) -> list[str]:
    """Return a class's row of the table of accuracies."""
    return [row["class"], *(percent(rate_of_class(value)) for name, value in row.items() if name != "class")]


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

    Refused where the server does not answer; the files are there.
    """
    import mlflow
    from mlflow.entities import Metric

    client, now = mlflow.MlflowClient(tracking_uri(config)), int(time.time() * 1000)
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
        client.log_batch(run_id, metrics=metrics)
        for path in paths:
            client.log_artifact(run_id, str(path), "evaluation")

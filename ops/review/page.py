"""`review`: one page with everything about an experiment; it needs neither a network nor this project."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from plotly.offline import get_plotlyjs

from cluster.metric_names import METRICS
from cluster.tracking.mlflow_errors import mlflow_errors_as_refusals
from cluster.training.selection import SCORES
from kdcore.credentials import without_credentials
from kdcore.errors import Refused
from ops.console import say
from ops.evaluation.evaluate import rate_of_class
from ops.evaluation.image_names import split_name
from ops.export.model_card import environment
from ops.history import Run, grouped, runs_of
from ops.review import figures
from ops.review.columns import recipe_columns, run_columns, table
from ops.review.figures import Histories
from ops.review.groups import STUDIED, Row, recipe_differences, rows_of, sentences
from ops.review.sweeps import sweeps_of
from ops.stores import open_store, run_link
from pipelines.files import require_file_place, write_text

CURVES = {  # {metric: (its title, whether it is a share)}
    **{
        f"{split}/{name}": (f"{images} {METRICS[name].title}", True)
        for name in ("top1", "mAP")
        for split, images in (("val", "validation"), ("held_out", "held-out"))
    },
    "val/agreement": (METRICS["agreement"].title, True),
    "train/loss": ("training loss", False),
}
CURVES_OF_AT_MOST = 8  # groups; more cannot be told apart


def review(
    experiment: str,
    store: str | None,
    output: str | None,
    compare: Sequence[str] | None,
    metric: str | None,
    studied: Sequence[str] | None,
) -> int:
    """Write the page. Refused where the experiment, a run or the metric is not there.

    metric: None for the validation score by which weights are chosen: top-1 or, where no run has it, mAP, and so on.
    """
    path = Path(output or f"{experiment}-review.html")
    require_file_place(path, "--output")
    uri = open_store(store)
    client = mlflow.MlflowClient(uri)
    with mlflow_errors_as_refusals(uri, "start it, or name another --store"):
        runs = runs_of(client, experiment)
        metric = metric or usual_metric(runs)
        rows = rows_of(grouped(runs), metric, studied or STUDIED)
        if not rows:
            raise Refused(f"experiment {experiment!r} has no finished run with {metric}; take another --metric")
        pair = [find_run(runs, name) for name in compare or ()]
        text = page(client, experiment, runs, rows, pair, metric)
    write_text(path, text)
    say(f"{len(rows)} recipes, {sum(len(row.group.runs) for row in rows)} finished runs of {len(runs)}")
    if set_aside := sum(row.set_aside for row in rows):
        say(f"set aside: {set_aside} finished runs that later ones with the same recipe and seeds repeat")
    if stopped := sum(bool(row.group.stops) for row in rows):
        say(f"ranked last: {stopped} recipes of which a sweep has stopped some seeds; the others are its best")
    for line in sentences(rows, metric):
        say(f"  {line}")
    say(f"written: {path}")
    return 0


def usual_metric(runs: Sequence[Run]) -> str:
    """Return the metric to compare recipes by where none is asked for: the first that a run has."""
    names = [f"val/{name}" for name in SCORES]
    return next((name for name in names if any(name in run.metrics for run in runs)), names[0])


def find_run(runs: Sequence[Run], name: str) -> Run:
    """Find a run by name or id; the latest of several."""
    found = [run for run in runs if name in (run.name, run.run_id)]
    if not found:
        raise Refused(f"no run {name!r} in this experiment; it has {', '.join(sorted({r.name for r in runs})[:12])}")
    return found[-1]


def page(
    client: mlflow.MlflowClient, experiment: str, runs: list[Run], rows: list[Row], pair: list[Run], metric: str
) -> str:
    """Return the whole page, as HTML."""
    shown = rows[:CURVES_OF_AT_MOST]
    wanted = {run.run_id: run for row in shown for run in row.group.runs} | {run.run_id: run for run in pair}
    histories = read_histories(client, wanted.values())
    curves = [figures.curves(shown, histories, name, *how) for name, how in CURVES.items()]
    sweeps = sweeps_of(client, runs, metric)
    comparison = compare_runs(client, pair, histories) if pair else None
    drawn = [f for f in curves if f] + [f for sweep in sweeps for f in sweep.figures]
    drawn += comparison["figures"] if comparison else []
    labels = {run.run_id: row.label for row in rows for run in (*row.group.runs, *row.group.stopped)}
    links = {run.run_id: run_link(client.tracking_uri, run.experiment_id, run.run_id) for run in runs}
    return (
        environment()
        .get_template("review.html.j2")
        .render(
            experiment=experiment,
            uri=without_credentials(client.tracking_uri),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            metric=metric,
            recipes=table("recipes", recipe_columns(metric), rows),
            all_runs=table("runs", run_columns(metric, labels, links), runs),
            links=links,
            sentences=sentences(rows, metric),
            curves=[f for f in curves if f],
            left_out=len(rows) - len(shown),
            sweeps=sweeps,
            comparison=comparison,
            drawn=drawn,
            plotly=get_plotlyjs().replace("</script", "<\\/script"),
        )
    )


def read_histories(client: mlflow.MlflowClient, runs: Iterable[Run]) -> Histories:
    """Read the curves of the runs, as far as MLflow has them."""
    return {
        run.run_id: {
            name: sorted((point.step, point.value) for point in client.get_metric_history(run.run_id, name))
            for name in CURVES
            if name in run.metrics
        }
        for run in runs
    }


def compare_runs(client: mlflow.MlflowClient, pair: Sequence[Run], histories: Histories) -> dict[str, Any]:
    """Return what differs between two runs: in the recipe, in the curves, by class."""
    one, other = pair
    drawn = [figures.pair_curves(pair, histories, name, *how) for name, how in CURVES.items()]
    evaluated = same_evaluations(client, pair)
    split = split_name(one.recipe.get("data.val_split", "val"))
    classes = [by_class(content) for content in evaluated.get(split, ())]
    shared = (
        [(name, classes[1][name] - classes[0][name]) for name in classes[0] if name in classes[1]] if classes else []
    )
    if shared:
        drawn.append(figures.class_differences([run.name for run in pair], images_of(evaluated[split][0]), shared))
    return {
        "runs": pair,
        "recipe": recipe_differences(one, other),
        "metrics": shared_metrics(one, other, evaluated),
        "figures": [f for f in drawn if f],
        "by_class": bool(shared),
    }


def shared_metrics(one: Run, other: Run, images: Iterable[str]) -> list[tuple[str, float, float]]:
    """Return (metric, its value in one, in the other): from evaluations that both have, else from last validations.

    images: the names of those that both were evaluated on.
    """
    names = sorted(one.metrics.keys() & other.metrics.keys())
    prefixes = tuple(f"evaluation/{name}/" for name in images)
    chosen = [name for name in names if name.startswith(prefixes)] or [
        name for name in names if name.startswith(("val/", "held_out/"))
    ]
    return [
        (name, one.metrics[name], other.metrics[name])
        for name in chosen
        if not name.rpartition("/")[2].startswith(("teacher_", "images"))
    ]


def same_evaluations(client: mlflow.MlflowClient, pair: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """Return {images: what `evaluate` found of each run} for the images that both were evaluated on.

    These have equal fingerprints: two runs' validation images may have the same name and yet differ.
    """
    one, other = (evaluations_of(client, run) for run in pair)
    shared = (name for name in one.keys() & other.keys() if one[name]["fingerprint"] == other[name]["fingerprint"])
    return {name: [one[name], other[name]] for name in shared}


def evaluations_of(client: mlflow.MlflowClient, run: Run) -> dict[str, dict[str, Any]]:
    """Return {images: what `evaluate` found of a run on them}."""
    there = [artifact.path for artifact in client.list_artifacts(run.run_id, "evaluation")]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(client.download_artifacts(run.run_id, one, folder)) for one in there if one.endswith(".json")]
        return {path.stem: json.loads(path.read_text("utf-8")) for path in paths}


def images_of(content: Mapping[str, Any]) -> str:
    """Return the images that an evaluation saw, in words."""
    return f"the {content['metrics']['student']['images']:,} images of {content['images']} ({content['data']})"


def by_class(content: Mapping[str, Any]) -> dict[str, float]:
    """Return {class: the student's accuracy, or average precision} of an evaluation."""
    found = {row["class"]: rate_of_class(row["student"]) for row in content["classes"]}
    return {name: rate for name, rate in found.items() if rate is not None}

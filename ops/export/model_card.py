"""The model card: what a student is, what it was made from, how good it is, and over how many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from cluster.assembly import Assembly
from cluster.images import deployed_size, evaluation_policy
from cluster.metric_names import METRICS
from cluster.recipe.reading import to_yaml
from cluster.scores import in_words, says_more
from cluster.tracking.description import method_name, network_pair
from cluster.tracking.folder import RunFolder
from cluster.tracking.mlflow_errors import mlflow_errors_as_refusals
from cluster.tracking.mlflow_store import is_missing
from cluster.tracking.mlflow_tracker import tracking_uri
from kdcore.cost import deployment_cost
from ops.console import say
from ops.evaluation.image_names import changed_views, distinct_name
from ops.export.construction import Construction
from ops.export.files import CARD
from ops.export.lineage import teachers_of
from ops.export.markdown import as_block, as_code, as_text
from ops.history import Group, find_run, runs_of, siblings
from ops.spread import spread
from pipelines.files import read_json, write_text

TEMPLATES = Path(__file__).parents[1] / "templates"
OF_STUDENT = ("top1", "top5", "class_mean_top1", "mAP", "f1", "agreement", "kl")
REPORTED = {  # {metric: (what the card calls it, the format of its values)}
    **{f"val/{name}": (METRICS[name].whole_title, METRICS[name].form) for name in OF_STUDENT},
    **{f"val/teacher_{name}": (f"the teacher's {METRICS[name].title}", METRICS[name].form) for name in ("top1", "mAP")},
}


def environment() -> jinja2.Environment:
    """Return the environment of the templates, which fail on a missing name.

    In HTML all values are escaped automatically; Markdown has the filters text, code and block for that.
    """
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html.j2", "html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"text": as_text, "code": as_code, "block": as_block}
    return made


def write_card(
    folder: Path,
    parts: Assembly,
    student: nn.Module,
    run_dir: Path,
    made: Construction,
    facts: Mapping[str, Any],
    checks: list[dict[str, Any]],
    num_images: int,
) -> str:
    """Write the card; return its text. made: what builds the network; facts: the metadata of model.onnx."""
    config = parts.config
    changed = changed_views(config, RunFolder(run_dir))
    numbers, set_aside, stops = reported_metrics(run_dir, parts) if changed is None else ([], 0, "")
    text = (
        environment()
        .get_template("model_card.md.j2")
        .render(
            name=config.name,
            method=method_name(config),
            pair=network_pair(config),
            reused=config.student.classifier == "reused",
            made=made,
            args="".join(f", {key}={value!r}" for key, value in made.args.items()),
            classes=parts.indexes["train"].classes,
            cost=deployment_cost(student, deployed_size(config), say),
            policy=evaluation_policy(config),
            preprocessing=facts["preprocessing"],
            teachers=teacher_rows(parts),
            data=data_facts(parts),
            views=config.views.model_dump(mode="json", exclude_defaults=True),
            select=config.train.select,
            numbers=numbers,
            set_aside=set_aside,
            stops=stops,
            evaluations=evaluations(run_dir, parts.indexes["val"].fingerprint, changed),
            multi_label=config.data.multi_label,
            latencies=latencies(run_dir, deployed_size(config)),
            checks=checks,
            num_images=num_images,
            recipe=to_yaml(config),
        )
    )
    write_text(folder / CARD, text)
    return text


def teacher_rows(parts: Assembly) -> list[dict[str, str]]:
    """Return each teacher's name, model, fingerprint of its weights, and licence if timm states one."""
    teachers, rows = parts.teachers, []
    for name, recipe, facts in zip(teachers.members, parts.config.teacher_recipes, teachers_of(parts), strict=True):
        online, stated = teachers.online.get(name), None
        if online is not None and recipe.teacher and recipe.teacher.pretrained:
            stated = getattr(online.model, "pretrained_cfg", {}).get("license")
        licence = stated or "not stated: ask who made the weights"
        rows.append({"name": name, "model": facts["model"], "fingerprint": facts["weights"], "licence": licence})
    return rows


def data_facts(parts: Assembly) -> dict[str, Any]:
    """Return the data's name, sizes and fingerprint."""
    return {
        "name": parts.config.data.name,
        "splits": {split: len(index) for split, index in parts.indexes.items()},
        "fingerprint": parts.indexes["train"].fingerprint,
    }


def reported_metrics(run_dir: Path, parts: Assembly) -> tuple[list[dict[str, str]], int, str]:
    """Return every reported metric of this run, with its spread over the runs of its recipe with other seeds.

    The number: of runs that do not count, since later ones repeat their seeds. The text: how many seeds a sweep has
    stopped, in which case there is no spread.
    """
    metrics = RunFolder(run_dir).read_result()["metrics"]
    group = repetitions_in_mlflow(run_dir, parts)
    reported = {key: how for key, how in REPORTED.items() if says_more(key, metrics)}
    rows = [
        {
            "name": title,
            "value": value_text([metrics[key]], form),
            "all": value_text([] if group.stops else group.values(key), form),
        }
        for key, (title, form) in reported.items()
    ]
    return rows, max((group.set_aside(key) for key in reported), default=0), group.stops


def repetitions_in_mlflow(run_dir: Path, parts: Assembly) -> Group:
    """Return the runs of this recipe in MLflow; none if this one is not there."""
    import mlflow

    run_id = RunFolder(run_dir).read_run_id()
    uri = tracking_uri(parts.config)
    if run_id is None or is_missing(uri):
        return Group(())
    client = mlflow.MlflowClient(uri)
    with mlflow_errors_as_refusals(
        uri, "the model card tells of the other seeds' runs there: export again when it is back"
    ):
        run = find_run(client, run_id)
        if run is None:
            return Group(())
        return siblings(run, runs_of(client, client.get_experiment(run.experiment_id).name))


def value_text(values: Sequence[float], form: str) -> str:
    """Return values as text, such as '96.70%', or '96.70% ± 0.40% (n = 3)'."""
    if not values:
        return "-"
    found = spread(values)
    text = form.format(found["mean"])
    return text if found["stdev"] is None else f"{text} ± {form.format(found['stdev'])} (n = {found['n']})"


def evaluations(run_dir: Path, own: str, changed: str | None = None) -> list[dict[str, Any]]:
    """Return the results of `evaluate` in the run's folder, with the student's rates in words.

    own: the fingerprint of the run's validation images, the only ones that go by their split's name; changed: as from
    `changed_views`. Results on images that were shown differently are left out.
    """
    found = [read_json(path, "evaluate again") for path in RunFolder(run_dir).evaluations]
    found = [one for one in found if one.get("views") == changed]
    return [
        {
            **one,
            "images": distinct_name(one["images"], one["fingerprint"], own),
            "rates": in_words(one["metrics"]["student"]),
        }
        for one in found
    ]


def latencies(run_dir: Path, size: tuple[int, int]) -> dict[str, Any] | None:
    """Return what `benchmark` measured of the student on images of this size; None where it measured none.

    on_gpu: whether a GPU ran any of it. Earlier versions did not record the size; their results count as of this one.
    They recorded one device for all, though ONNX Runtime was on the CPU.
    """
    path = RunFolder(run_dir).benchmark
    if not path.is_file():
        return None
    found = read_json(path, "run `python -m ops benchmark` again")
    students = [row for row in found["rows"] if row["network"] == "student"]
    rows = [
        row if "device" in row else {**row, "device": "cpu" if row["form"] == "onnx" else found["device"]}
        for row in students
        if tuple(row.get("size", size)) == size
    ]
    on_gpu = any(str(row["device"]).startswith("cuda") for row in rows)
    return {**found, "rows": rows, "on_gpu": on_gpu} if rows else None

"""`probe`: rates a run's networks by their frozen features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cluster.assembly import assemble
from cluster.evaluation import load_student
from cluster.nodes.resources import rank_here, use_worker_threads
from cluster.probing import Probe
from cluster.recipe.config import RunConfig
from kdcore.errors import Refused
from kdcore.protocol import find_classifier
from ops.console import console, say, table
from ops.evaluation.subjects import find_student

COLUMNS = {
    "knn_top1": "nearest neighbours' top-1",
    "probe_top1": "linear probe's top-1",
    "neighbour_agreement": "neighbours shared with the teacher",
}


@dataclass(frozen=True)
class Knowledge:
    """What frozen features know: {split/metric} of each network, by the keys of COLUMNS.

    bank: number of labelled training images, among which neighbours are searched and to which probes are fitted;
    without_teacher: why there are no numbers of a teacher.
    """

    student: Mapping[str, float]
    teacher: Mapping[str, float]
    splits: Sequence[str]
    bank: int
    without_teacher: str = ""


def probe(run: str, overrides: Sequence[str]) -> int:
    """Print what the features of student and teacher know, on every split that networks are evaluated on."""
    found = knowledge(run, overrides)
    rows = [
        [name, split, *(f"{values[f'{split}/{key}']:.2%}" if f"{split}/{key}" in values else "-" for key in COLUMNS)]
        for split in found.splits
        for name, values in (("student", found.student), ("teacher", found.teacher))
        if any(key.startswith(f"{split}/") for key in values)
    ]
    size = f"{found.bank:,} training images" if found.bank else "no labelled training images"
    console.print(table(f"frozen features, from {size}", ["", "images", *COLUMNS.values()], rows))
    if found.without_teacher:
        say(f"without the teacher: {found.without_teacher}")
    return 0


def knowledge(run: str, overrides: Sequence[str]) -> Knowledge:
    """Return what the features of a finished run's student know, and those of its teacher if that is online."""
    subject, weights = find_student(run, overrides)
    use_worker_threads(subject.config)
    with torch.random.fork_rng(devices=[]):
        parts = assemble(subject.config, rank_here(subject.config))
    if parts.config.data.multi_label:
        parts.indexes["train"].require_one_label("a probe by nearest neighbours")
    splits = [split for split in ("val", "held_out") if split in parts.indexes]
    network = load_student(parts, weights)
    if find_classifier(network) is None:
        raise Refused(
            f"the student {subject.config.student.model} has no single linear classifier, whose input a probe "
            f"reads; `python -m ops evaluate {run}` judges its answers"
        )
    judged = Probe(parts, splits, of_any_teacher=True)
    student = judged.metrics(network, linear=True)
    teacher = judged.teacher_metrics(linear=True)
    return Knowledge(
        student,
        {f"{split}/{key}": value for split, values in teacher.items() for key, value in values.items()},
        splits,
        0 if judged.bank is None else len(judged.bank),
        "" if judged.teacher else _why_no_teacher(subject.config),
    )


def _why_no_teacher(config: RunConfig) -> str:
    """Return why no teacher's features are known; nothing where the recipe has none."""
    if not config.all_teachers:
        return ""
    if all(teacher.cached for teacher in config.all_teachers):
        return "it is read from a cache, without its features; add teacher.source=online"
    return "it has no single linear classifier, whose input a probe reads"

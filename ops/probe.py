"""`probe`: a run's networks by their frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cluster.assembly import assemble
from cluster.evaluation import load_student
from cluster.probing import Probe
from cluster.resources import rank_here, use_worker_threads
from kdcore.errors import Refused
from ops.console import console, table
from ops.evaluate import find_subject

COLUMNS = {
    "knn_top1": "nearest neighbours' top-1",
    "probe_top1": "linear probe's top-1",
    "neighbour_agreement": "neighbours shared with the teacher",
}


def probe(run: str, overrides: Sequence[str]) -> int:
    """Print what the features of student and teacher know, on every split that judges networks."""
    subject = find_subject(run, None, overrides)
    if subject.weights is None:
        raise Refused(f"{run} is a recipe; give the folder of a finished run")
    use_worker_threads(subject.config)
    with torch.random.fork_rng(devices=[]):
        parts = assemble(subject.config, rank_here(subject.config))
    splits = [split for split in ("val", "held_out") if split in parts.indexes]
    judged = Probe(parts, splits)
    student = judged.metrics(load_student(parts, subject.weights), linear=True)
    teacher = {
        f"{split}/{k}": v for split, found in judged.teacher_metrics(linear=True).items() for k, v in found.items()
    }
    rows = [
        [name, split, *(f"{found[f'{split}/{key}']:.2%}" if f"{split}/{key}" in found else "-" for key in COLUMNS)]
        for split in splits
        for name, found in (("student", student), ("teacher", teacher))
        if any(key.startswith(f"{split}/") for key in found)
    ]
    size = "no labelled training images" if judged.bank is None else f"{len(judged.bank):,} training images"
    console.print(table(f"frozen features, from {size}", ["", "images", *COLUMNS.values()], rows))
    return 0

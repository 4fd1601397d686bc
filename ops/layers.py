"""`layers`: how much a teacher's layers have to teach, as a table, a picture and the part of a recipe they recommend.

Not here: the scores (`kdcore.quality.collect`), and the pass that collects the features (`cluster.passes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import psutil
import yaml
from matplotlib.figure import Figure
from rich.table import Table
from torch import nn

from cluster.assembly import Assembly, assemble
from cluster.images import image_size
from cluster.nodes.resources import rank_here
from cluster.passes import quality_pass
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_teacher
from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.quality.blocks import block_taps
from kdcore.quality.collect import MAX_ELEMENTS, LayerScores, class_balanced_sample, kept_bytes, recommend_pairs
from kdcore.quality.score import INFORMATION_SCALE, SEPARATION, InformationScale, Quality, Separation
from kdcore.terms.base import Pair
from kdcore.terms.logits import CrossEntropy
from ops import catalog
from ops.console import console, say, table
from pipelines.files import make_folder, require_folder_place, write_figure, write_json, write_text

MEMORY_SHARE = 0.5  # of the machine's free memory

PANELS = {
    "separation": "separation S",
    "information": "information I",
    "efficiency": "efficiency E",
    "q": "quality Q = S + sqrt(I E)",
}


def layers(
    recipe: str,
    overrides: Sequence[str],
    taps: Sequence[str] | None,
    student_taps: Sequence[str] | None,
    num_pairs: int | None,
    num_images: int,
    scale: InformationScale,
    separation: Separation,
    max_elements: int,
    output_dir: str,
) -> int:
    """Score the recipe's teacher on a class-balanced sample of the training images; write what that recommends."""
    output = Path(output_dir)
    require_folder_place(output, "--output")
    config = catalog.load_here(recipe, overrides)
    scores = score(
        config,
        taps,
        student_taps,
        num_images=num_images,
        scale=scale,
        max_elements=max_elements,
        separation=separation,
    )
    quality, paired = scores.quality, scores.student_taps
    pairs = recommend_pairs(paired, quality, num_pairs or min(4, len(paired), len(quality)))
    make_folder(output, "--output")
    console.print(render_table(quality, pairs))
    plot(quality, output / "layers.png", pairs)
    write_json(output / "layers.json", {tap: asdict(q) | {"q": q.q} for tap, q in quality.items()})
    write_text(output / "method.yaml", recommendation_yaml(pairs))
    say(f"written: {output}/layers.png, layers.json, and method.yaml, which a recipe takes as `base:`")
    return 0


def score(
    config: RunConfig,
    taps: Sequence[str] | None = None,
    student_taps: Sequence[str] | None = None,
    *,
    num_images: int,
    scale: InformationScale = INFORMATION_SCALE,
    max_elements: int = MAX_ELEMENTS,
    separation: Separation = SEPARATION,
) -> LayerScores:
    """Return the quality of the teacher's layers on a class-balanced sample of the training images.

    taps, student_taps: in depth order; by default the networks' blocks. Refused without an online teacher, and for a
    network in which no block is found.
    """
    if config.teachers:
        names = ", ".join(member.name for member in config.teachers)
        raise Refused(f"{config.name} has several teachers ({names}); give the one whose layers are scored as teacher")
    asked = require_teacher(config)
    if asked.cached:
        raise Refused(f"{config.name}: a cached teacher's layers cannot be scored; set teacher.source=online")
    run = assemble_with_any_teacher(config)
    parts = run.for_teacher
    train, size = parts.indexes["train"], image_size(parts.config)
    train.require_one_label("a score of layers")
    asked_online = parts.teachers.single
    taps = taps or blocks_of(asked_online.model, size, asked.model, "--taps")
    student_taps = student_taps or blocks_of(
        run.student, image_size(run.config), config.student.model, "--student-taps"
    )
    per_class = min(max(2, num_images // len(train.classes)), int(np.bincount(train.labels).min()))
    ids = class_balanced_sample(train.labels, per_class, config.seed)
    teacher = OnlineTeacher(asked_online.model, Needs(teacher_taps=frozenset(taps)), asked_online.renormalise)
    check_memory(teacher, size, len(ids), max_elements)
    say(f"{len(taps)} taps of {asked.model} over {len(ids):,} images, {per_class} of each class")
    collected = quality_pass(
        teacher,
        parts.evaluation_loader("train"),
        ids,
        len(train.classes),
        information_scale=scale,
        separation=separation,
        max_elements=max_elements,
    )
    found = collected.result(len(train), device=parts.rank.device)
    return LayerScores({tap: found[tap] for tap in taps}, student_taps)


def assemble_with_any_teacher(config: RunConfig) -> Assembly:
    """Build a run whose teacher may know other classes than the data's: scores read features, and the data's labels.

    Its classifier is then left out, and that is said.
    """
    try:
        return assemble(config, rank_here(config))
    except Refused as refusal:
        headless = require_teacher(config).model_copy(update={"head": "none", "class_indices": None})
        method = (CrossEntropy(weight=1),)  # what else the recipe learns from may be the classifier's
        try:
            run = assemble(config.model_copy(update={"teacher": headless, "method": method}), rank_here(config))
        except Refused:
            raise refusal from None
    say(f"{headless.model} is scored without its classifier, which is absent or for other classes than the data's")
    return run


def blocks_of(network: nn.Module, size: tuple[int, int], name: str, option: str) -> list[str]:
    """Return the taps where a network's blocks end. Refused, with what to give in their place, if none are found."""
    if found := block_taps(network, size):
        return found
    some = ", ".join([tap for tap, _ in network.named_modules() if tap][:8])
    raise Refused(f"no blocks are found in {name}; name the layers to score, in depth order: {option} (of {some}, ...)")


def check_memory(teacher: OnlineTeacher, size: tuple[int, int], num_images: int, max_elements: int) -> None:
    """Refuse, with the remedy, features that would not fit into the machine's memory."""
    needed = kept_bytes(teacher.taps.shapes(size), num_images, max_elements)
    free = psutil.virtual_memory().available
    if needed > free * MEMORY_SHARE:
        raise Refused(
            f"the features of {num_images:,} images take {needed / 2**30:.1f} GiB, more than half of the "
            f"{free / 2**30:.1f} GiB free; pool maps further (--max-elements 16384), or give fewer --taps or --images"
        )


def render_table(quality: Mapping[str, Quality], pairs: Sequence[Pair] = ()) -> Table:
    """Return a table with one row per tap, in the order given.

    The last column names the student tap that a recommended tap is paired with.
    """
    student = {pair.teacher: pair.student for pair in pairs}
    samples = sorted({score.samples for score in quality.values()})
    rows = [[tap, *_figures(score), student.get(tap, "")] for tap, score in quality.items()]
    title = f"layer quality over {' or '.join(f'{n:,}' for n in samples)} images"
    return table(title, ["tap", "elements", "effective dims", "S", "I", "E", "Q", "student tap"], rows)


def _figures(score: Quality) -> list[str]:
    scores = (score.separation, score.information, score.efficiency, score.q)
    return [f"{score.dims:,}", f"{score.effective_dims:.1f}", *(f"{value:.4f}" for value in scores)]


def plot(quality: Mapping[str, Quality], path: str | Path, pairs: Sequence[Pair] = ()) -> None:
    """Draw four curves over depth, one above the other, the recommended taps marked.

    The suffix of path determines the format.
    """
    taps, chosen = list(quality), {pair.teacher for pair in pairs}
    marked = [i for i, tap in enumerate(taps) if tap in chosen]
    figure = Figure(figsize=(max(6.0, 0.35 * len(taps)), 9.0), layout="constrained")
    panels = figure.subplots(len(PANELS), sharex=True)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        values = [getattr(score, name) for score in quality.values()]
        axes.plot(values, marker=".", color="tab:blue")
        axes.plot(marked, [values[i] for i in marked], "o", color="tab:orange")
        axes.set_title(label, loc="left", fontsize="medium")
        axes.grid(alpha=0.3)
    panels[-1].set_xticks(range(len(taps)), taps, rotation=90)
    panels[-1].set_xlabel("teacher tap, in depth order")
    write_figure(Path(path), figure)


def recommendation_yaml(pairs: Sequence[Pair]) -> str:
    """Return the `method` of a recipe: features train the backbone, labels the head after the pairs' deepest tap."""
    if not pairs:
        raise Refused("there is no pair to write; recommend at least one")
    features = {
        "term": "feature_only",
        "weight": 1,
        "pairs": [pair.model_dump() for pair in pairs],
        "detach_head_at": pairs[-1].student,
    }
    return yaml.safe_dump({"method": [features, {"term": "ce", "weight": 1}]}, sort_keys=False)

"""What `show` prints of a recipe without training it: its cost and its networks; and pictures of its views."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.filesize import decimal
from torch import nn

from cluster.assembly import Assembly, assemble
from cluster.batches import Batches
from cluster.cache.builder import cache_bytes
from cluster.images import evaluation_policy, image_size
from cluster.nodes.resources import use_worker_threads
from cluster.outline import outline
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.rehearsal import stand_in
from cluster.tracking.pictures import sheet
from cluster.training.advice import unseen_images
from kdcore.cost import multiply_adds
from kdcore.errors import Refused
from kdcore.models import count_parameters
from kdcore.online_teacher import OnlineTeacher
from kdcore.reporting import optional
from kdcore.reused import deployed_parameters
from kdcore.taps import CLASSIFIER_INPUT, FORWARD_FEATURES, usable_taps
from ops.console import console, duration, say, table
from pipelines.files import require_file_place
from pipelines.loaders.base import Request
from pipelines.spread import evenly_spread
from pipelines.views.plan import ViewPlan

_SAMPLES, _VIEWS = 6, 7  # of a picture of sample views
FLOAT_BYTES = 4


def print_run(config: RunConfig, seconds: float) -> None:
    """Print what a run takes, then both networks with their sizes, cost and taps.

    seconds: how long to time its steps; 0: not at all.
    """
    use_worker_threads(config)
    parts = outline(config)
    console.print(table("what it takes", ["", ""], cost_rows(parts, seconds)))
    networks, sees, read = networks_of(parts)
    rows = [network_row(name, network, sees[name]) for name, network in networks.items()]
    if not config.needs.class_statistics:
        extras = f"{count_parameters(parts.distiller(stand_in(parts)).extras):,}"
        rows.append(["trained beside the student", "", extras, "", ""])
    columns = ["network", "model", "parameters", "GMACs / image", "float32 MB"]
    title = f"{len(parts.indexes['train'].classes)} classes, {config.views.height} x {config.views.width} pixels"
    console.print(table(title, columns, rows))
    for name, network in networks.items():
        title = f"taps of the {name} (* read by the method)"
        console.print(table(title, ["tap", "size"], tap_rows(network, sees[name], read[name])))


def networks_of(parts: Assembly) -> tuple[dict[str, nn.Module], dict[str, RunConfig], dict[str, frozenset[str]]]:
    """Return, of the student and the online teachers: the network, what it sees, the taps that are read."""
    config = parts.config
    networks, read = {"student": parts.student}, {"student": config.needs.student_taps}
    for (name, teacher), recipe in zip(parts.teachers.members.items(), config.teacher_recipes, strict=True):
        if isinstance(teacher, OnlineTeacher):
            shown = f"teacher {name}".rstrip()
            networks[shown], read[shown] = teacher.model, recipe.needs.teacher_taps
    return networks, dict.fromkeys(networks, config) | {"teacher": parts.for_teacher.config}, read


def cost_rows(parts: Assembly, seconds: float) -> list[list[str]]:
    """Return a run's images, steps, time and bytes. seconds: how long to time its steps; 0: not at all."""
    config, images = parts.config, len(parts.indexes["train"])
    rows = [
        ["training images", f"{images:,}, and {len(parts.indexes['val']):,} for validation"],
        ["steps", f"{parts.steps_per_epoch:,} an epoch, {parts.total_steps:,} in {config.train.epochs} epochs"],
    ]
    if unseen := unseen_images(Batches.of(config, images)):
        rows.append(["", unseen])
    rows += time_rows(parts, seconds) if seconds else [["training", "--seconds 2 measures how long it takes"]]
    rows.append(["bytes", f"{decimal(deployed_parameters(parts.student) * FLOAT_BYTES)} of the student's weights"])
    if config.cache is not None and config.all_teachers and config.views.num_views is not None:
        with optional("the size of the cache is", say):
            size = sum(cache_bytes(one) for one in config.cache_recipes)
            rows.append(["", f"{decimal(size)} of the teacher's outputs in {config.views.num_views} views"])
    return rows


def time_rows(parts: Assembly, seconds: float) -> list[list[str]]:
    """Return how long a run takes, timed for `seconds`; nothing where that fails, and the reason is printed."""
    from cluster.forecast import forecast  # imports the training loop, which only a measurement needs

    with optional("the time it takes is", say):
        seen = forecast(parts.config, seconds)
        workers = f"{seen.num_workers} worker{'s' if seen.num_workers > 1 else ''}"
        epochs = duration(seen.seconds / max(1, parts.total_steps / parts.steps_per_epoch))
        return [
            ["training", f"{duration(seen.seconds)} on {workers} such as this one, {epochs} an epoch"],
            ["", f"{seen.images_per_second:,.0f} images/s, measured on one for {seconds:g} s"],
        ]
    return []


def save_views(config: RunConfig, path: Path) -> None:
    """Save a sheet of training images, one per row: the centre that evaluation would show, then its first views."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Refused(f"--picture {path}: give a name that ends in .png or .jpg")
    require_file_place(path, "--picture")
    if not path.absolute().parent.is_dir():
        raise Refused(f"--picture {path}: there is no folder {path.absolute().parent}; make it first")
    views = config.views.model_copy(update={"sizes": ()})  # a sheet has cells of one size
    alone = config.model_copy(update={"teacher": None, "teachers": (), "views": views})
    run = assemble(alone, Rank(0, 1, torch.device("cpu")))
    num = len(run.indexes["train"])
    ids = evenly_spread(num, _SAMPLES)
    centre = ViewPlan(evaluation_policy(config).model_copy(update={"size": config.views.size}), run.plan.seed, num)
    shown = range(min(_VIEWS, views.num_views or _VIEWS))
    batches = [
        *run.loader("train", centre, len(ids)).load([Request(0, ids)]),
        *run.loader("train", run.plan, len(ids)).load(Request(view, ids) for view in shown),
    ]
    images = torch.stack([batch.images for batch in batches], dim=1).flatten(0, 1)
    sheet(images, run.statistics, path, columns=len(batches))
    say(f"written: {path}: {len(ids)} training images, one a row; the centre, then views 0 to {shown[-1]}")


def network_row(name: str, network: nn.Module, config: RunConfig) -> list[str]:
    """Return a network's row of the table of sizes and costs."""
    parameters, gmacs = count_parameters(network), "-"
    with optional(f"the cost of the {name} is", say):
        gmacs = f"{multiply_adds(network, image_size(config)) / 1e9:.4f}"
    return [
        name,
        type(network).__name__,
        f"{parameters:,}",
        gmacs,
        f"{parameters * 4 / 1e6:.2f}",
    ]


def tap_rows(network: nn.Module, config: RunConfig, read: frozenset[str]) -> list[list[str]]:
    """Return every outer tap (two levels deep) with its size; modules whose output is not a tensor are left out."""
    names = [name for name, _ in network.named_modules() if name and name.count(".") <= 1]
    shapes = usable_taps(network, [*names, FORWARD_FEATURES, CLASSIFIER_INPUT, *sorted(read)], image_size(config))
    return [[f"{name} *" if name in read else name, " x ".join(map(str, shape))] for name, shape in shapes.items()]

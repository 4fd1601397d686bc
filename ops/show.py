"""`show`: a recipe as it will run, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cluster.assembly import assemble, evaluation_policy, image_size
from cluster.config import RunConfig
from cluster.plugins import describe_code
from cluster.rank import Rank
from cluster.recipe import to_yaml
from cluster.rehearsal import stand_in
from cluster.tracking.pictures import sheet
from kdcore.cost import multiply_adds
from kdcore.errors import Refused
from kdcore.models import count_parameters
from kdcore.reporting import optional
from kdcore.taps import CLASSIFIER_INPUT, FORWARD_FEATURES, usable_taps
from ops import catalog
from ops.console import console, say, table
from pipelines.loaders.base import Request
from pipelines.views.plan import ViewPlan

_SAMPLES, _VIEWS = 6, 7  # of a picture of sample views


def show(recipe: str, overrides: Sequence[str], picture: str | None = None) -> int:
    """Print the resolved recipe, then both networks with their sizes, cost and taps; or save sample views."""
    config = catalog.load_here(recipe, overrides)
    if picture is not None:
        return save_views(config, Path(picture))
    say(to_yaml(config, with_store=True))
    for line in describe_code(config):
        say(line)
    parts = assemble(config, Rank(0, 1, torch.device("cpu")))
    networks = {"student": parts.student} | ({"teacher": parts.teacher.model} if parts.teacher else {})
    read = {"student": config.needs.student_taps, "teacher": config.needs.teacher_taps}
    if parts.ensemble is not None:
        recipes = {member.name: one for member, one in zip(config.read_teachers, config.teacher_recipes, strict=True)}
        for name, teacher in parts.ensemble.online.items():
            networks[f"teacher {name}"] = teacher.model
            read[f"teacher {name}"] = recipes[name].needs.teacher_taps
    sees = dict.fromkeys(networks, config) | {"teacher": parts.for_teacher.config}
    rows = [network_row(name, network, sees[name]) for name, network in networks.items()]
    if not config.needs.class_statistics:
        rows.append(
            [
                "trained beside the student",
                "",
                f"{count_parameters(parts.distiller(stand_in(parts)).extras):,}",
                "",
                "",
            ]
        )
    columns = ["network", "model", "parameters", "GMACs / image", "float32 MB"]
    title = f"{len(parts.indexes['train'].classes)} classes, {config.views.height} x {config.views.width} pixels"
    console.print(table(title, columns, rows))
    for name, network in networks.items():
        title = f"taps of the {name} (* read by the method)"
        console.print(table(title, ["tap", "size"], tap_rows(network, sees[name], read[name])))
    return 0


def save_views(config: RunConfig, path: Path) -> int:
    """Save a sheet of training images, one a row: the centre that evaluation would show, then its first views."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise Refused(f"--picture {path}: give a name that ends in .png or .jpg")
    if not path.absolute().parent.is_dir():
        raise Refused(f"--picture {path}: there is no folder {path.absolute().parent}; make it first")
    run = assemble(config.model_copy(update={"teacher": None, "teachers": ()}), Rank(0, 1, torch.device("cpu")))
    num = len(run.indexes["train"])
    ids = np.unique(np.linspace(0, num - 1, _SAMPLES).astype(np.int64))
    centre = ViewPlan(evaluation_policy(config).model_copy(update={"size": config.views.size}), run.plan.seed, num)
    views = range(min(_VIEWS, config.views.num_views or _VIEWS))
    batches = [
        *run.loader("train", centre, len(ids)).load([Request(0, ids)]),
        *run.loader("train", run.plan, len(ids)).load(Request(view, ids) for view in views),
    ]
    images = torch.stack([batch.images for batch in batches], dim=1).flatten(0, 1)
    sheet(images, run.statistics, path, columns=len(batches))
    say(f"written: {path}: {len(ids)} training images, one a row; the centre, then views 0 to {views[-1]}")
    return 0


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
    """Return every outer tap (two levels deep) with its size; modules whose output is no tensor are left out."""
    names = [name for name, _ in network.named_modules() if name and name.count(".") <= 1]
    shapes = usable_taps(network, [*names, FORWARD_FEATURES, CLASSIFIER_INPUT, *sorted(read)], image_size(config))
    return [[f"{name} *" if name in read else name, " x ".join(map(str, shape))] for name, shape in shapes.items()]

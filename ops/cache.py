"""`cache`: build a teacher cache, verify it, show what it holds, copy it, and say whether it would pay off."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from cluster.cache.job import build
from cluster.cache.outlook import Outlook, outlook
from cluster.cache.verify import verify
from cluster.nodes.resources import device_here
from cluster.recipe.config import RunConfig
from cluster.recipe.rules import require_cache, require_teacher
from cluster.teachers.stored import TRAIN
from kdcore.errors import Refused, RunFailed
from ops import catalog
from ops.bar import clock
from ops.console import BarView, console, percent, say, table
from pipelines.cache.local import local_folder, publish
from pipelines.cache.manifest import Manifest, load_manifest
from pipelines.cache.rows import row_bytes, wanted
from pipelines.nested import flat


def build_cache(recipe: str, overrides: Sequence[str]) -> int:
    """Fill the recipe's cache (each teacher's, if there are several) and print what it holds."""
    for config in catalog.load_here(recipe, overrides).cache_recipes:
        started = time.perf_counter()
        with BuildView() as view:
            manifest = build(config, watch=view)
        assert config.cache is not None, "checked by build"
        show_contents(config.cache.dir, manifest)
        say(f"built in {time.perf_counter() - started:.0f} s; train from it with the teacher's source=cache")
    return 0


def verify_cache(recipe: str, overrides: Sequence[str], num_rows: int) -> int:
    """Read every byte of the recipe's cache (each teacher's, if there are several) and recompute some rows.

    RunFailed where they differ.
    """
    for config in catalog.load_here(recipe, overrides).cache_recipes:
        verify_one(config, num_rows)
    return 0


def verify_one(config: RunConfig, num_rows: int) -> None:
    """Verify the cache of a recipe with one teacher, and print what was compared."""
    found = verify(config, num_rows, device_here(config))
    rows = [[f"{one.part} {one.column}", one.coding, f"{one.rows:,}", f"{one.wrong:,}"] for one in found]
    title = f"{config.cache.dir if config.cache else ''}: checksums agree; rows recomputed"
    console.print(table(title, ["", "coding", "rows", "differ"], rows))
    wrong = [one for one in found if one.wrong]
    if wrong:
        raise RunFailed(
            f"{wrong[0].wrong} of {wrong[0].rows} rows of {wrong[0].part} {wrong[0].column} differ from the teacher's "
            "answers now, beyond rounding; build the cache again in another folder"
        )


def show_cache(folder: str) -> int:
    """Print what a cache holds, and which of the project's recipes it can serve."""
    directory = local_folder(folder)
    manifest = load_manifest(directory)
    show_contents(folder, manifest)
    console.print(table("it belongs to", ["", ""], [[k, str(v)] for k, v in flat(manifest.plan.identity).items()]))
    served = list(recipes_served(manifest, folder))
    say(f"named recipes that could read it, given these images and views: {', '.join(served) or 'none'}")
    return 0


def copy_cache(folder: str, location: str) -> int:
    """Copy a finished cache, into object storage for example."""
    manifest = publish(Path(folder), location)
    say(
        f"{location}: {len(manifest.shards):,} shards, {decimal(manifest.num_bytes)}; read it with cache.dir={location}"
    )
    return 0


def show_contents(folder: str, manifest: Manifest) -> None:
    """Print the columns with their sizes, and the error of the fitted ones."""
    rows = []
    for name, part in manifest.plan.parts.items():
        for column in part.columns:
            size, total = row_bytes([column]), part.num_rows * part.num_views
            shape = " x ".join(map(str, column.shape))
            views = f"{part.num_views} x {part.num_rows:,}"
            rows.append([f"{name} {column.name}", shape, column.coding, views, f"{size:,}", decimal(size * total)])
    columns = ["column", "shape", "coding", "views x samples", "bytes/view", "size"]
    title = f"{folder}: {len(manifest.shards):,} shards, {decimal(manifest.num_bytes)}"
    console.print(table(title, columns, rows))
    if manifest.error:
        measured = [[name, f"{value:g}"] for name, value in manifest.error.items()]
        console.print(table("error of the coding, on views kept back from its fit", ["", ""], measured))


def recipes_served(manifest: Manifest, folder: str) -> list[str]:
    """Return the named recipes whose teacher outputs are all in the cache; their data and views may differ."""
    served = []
    for name in catalog.names():
        config = catalog.load(name)
        if (
            config.teacher is None
            or not config.needs.reads_teacher
            or config.teacher.model != manifest.plan.identity["teacher"]["model"]
        ):
            continue
        try:
            wanted(manifest.plan.parts[TRAIN].columns, config.needs, folder)
        except Refused:
            continue
        if config.student.classifier == "own" or manifest.plan.head is not None:
            served.append(name)
    return served


def plan_cache(recipe: str, overrides: Sequence[str], seconds: float) -> int:
    """Measure this machine, and compare online with cached (for each teacher, if there are several)."""
    for config in catalog.load_here(recipe, overrides).cache_recipes:
        plan_one(config, seconds)
    return 0


def plan_one(config: RunConfig, seconds: float) -> None:
    """Compare online with cached for a recipe with one teacher. Refused first where it has no cache."""
    require_cache(config.cache, config.views)
    require_teacher(config)
    device = device_here(config)
    if config.teacher:
        say(f"teacher {config.teacher.model}:")
    say(f"measuring the loader, the teacher and the student on {device}, about {seconds:g} s each")
    seen = outlook(config, device, seconds)
    console.print(table("images/s, each alone on one worker", ["", ""], speed_rows(seen)))
    console.print(table(f"{seen.num_workers} workers", ["", "online", "cached"], cost_rows(seen)))
    say(f"recommended: {seen.recommendation}")


def speed_rows(seen: Outlook) -> list[list[str]]:
    """Return the speeds of loaders, teacher and student, each measured alone."""
    speeds = {"loader": seen.speeds.loader}
    if seen.speeds.teacher_loader is not None:
        speeds["loader, in the teacher's size"] = seen.speeds.teacher_loader
    speeds |= {"teacher": seen.speeds.teacher, "student's step": seen.speeds.student}
    return [[name, f"{speed:,.0f}"] for name, speed in speeds.items()]


def cost_rows(seen: Outlook) -> list[list[str]]:
    """Return the cost of an epoch online and from a cache, and the epochs after which a cache has paid off."""
    epochs = seen.break_even_epochs
    return [
        ["seconds per epoch", f"{seen.online_seconds:,.1f}", f"{seen.cached_seconds:,.1f}"],
        ["seconds before the first epoch", "0", f"{seen.build_seconds:,.1f}"],
        ["bytes", "0", f"{decimal(seen.num_bytes)} ({seen.num_views} views x {seen.row_bytes:,} bytes)"],
        ["paid for after", "-", "never" if epochs is None else f"{epochs:,.1f} epochs"],
        ["", "-", "never" if epochs is None else f"{epochs / seen.epochs:,.2f} runs of {seen.epochs} epochs"],
    ]


class BuildView(BarView):
    """Watches a cache build: call it with (state, messages) whenever they arrive."""

    def __init__(self) -> None:
        super().__init__("starting")

    def __call__(self, state: dict[str, Any], messages: list[str]) -> None:
        for message in messages:
            say(message)
        if not state:
            return
        done, total = state["step"], state["total_steps"]
        parts = [f"{state['images_per_second']:,.0f} images/s", decimal(int(state["bytes"]))]
        left = state["eta_seconds"]
        if self.is_live:
            self.bar.update(
                self.task, description=state["phase"], completed=done, total=total, parts=parts, seconds_left=left
            )
        elif done == total or self.line_is_due():
            counted = f"{state['phase']}: {done:,} of {total:,} rows ({percent(done / total)})"
            say("  ".join([counted, *parts, f"eta {clock(left)}"]))

"""`data`: shows what a source of images holds, and packs any source into Arrow shards."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kdcore.errors import Refused
from kdcore.located import is_uri
from ops.console import console, say, table
from pipelines.data.broken import Acceptance, BrokenImages, Check
from pipelines.data.classes import check_same_classes
from pipelines.data.convert import PackJob, run_pack_job, verify_pack
from pipelines.data.index import build_index
from pipelines.data.kinds import recognise
from pipelines.data.packing import Shards
from pipelines.data.source import Source
from pipelines.leases import leased
from pipelines.places import Place

if TYPE_CHECKING:  # these import what takes seconds
    from cluster.recipe.config import RunConfig

SPLITS = ("train", "val")
_MOST_BROKEN = 20  # images that are listed
_COLUMNS = ["split", "kind", "images", "classes", "size", "broken", "fingerprint"]


def show_source(
    root: str, splits: Sequence[str], index_dir: str, relist: bool, skip_broken: bool, check: Check, max_pixels: int
) -> int:
    """Index the splits of a source, or check that their indexes are still valid, and print what they hold.

    Broken images are listed; then the first split that is refused for them is, once all were looked at.
    """
    rows, labelled, started = [], {}, time.perf_counter()
    refused: list[BrokenImages] = []
    acceptance = Acceptance("skip" if skip_broken else "refuse", check, max_pixels)
    for split in splits or SPLITS:
        try:
            source = build_index(root, split, index_dir, relist=relist, acceptance=acceptance)
        except BrokenImages as error:
            _say_broken(split, error.messages)
            refused.append(error)
            continue
        kind, _ = recognise(Place.of(root, "ROOT"), split)
        rows.append(_row(split, kind.name, source))
        if source.labelled:
            labelled[split] = source
        for message in source.broken:
            say(f"left out: {message}")
    if rows:
        console.print(table(root, _COLUMNS, rows))
    for split, source in labelled.items():
        say(f"{split}: {_sizes(source)}")
    _say_other_classes(list(labelled.values()))
    if refused:
        raise refused[0]
    say(f"indexes in {index_dir}, {time.perf_counter() - started:.1f} s")
    return 0


def pack(
    root: str,
    target: str,
    splits: Sequence[str],
    max_side: int | None,
    quality: int | None,
    shard_mib: int,
    index_dir: str,
    skip_broken: bool,
    check: Check,
    max_pixels: int,
    teacher: str | None,
) -> int:
    """Pack the splits of a source, or resume an interrupted pack, and verify it."""
    if shard_mib < 1:
        raise Refused(f"--shard-mib {shard_mib}: give at least 1; 256 to 1024 suit object stores and disks")
    answering = None if teacher is None else _with_teacher(teacher, root)
    rows = []
    acceptance = Acceptance("skip" if skip_broken else "refuse", check, max_pixels)
    for split in splits or SPLITS:
        job = PackJob(
            root,
            split,
            target,
            index_dir,
            shard_mib * 2**20,
            max_side,
            quality,
            acceptance,
        )
        packing = job.prepare()
        started = time.perf_counter()
        with nullcontext() if is_uri(target) else leased(Path(target), "data pack"), _PackView(split) as view:
            packed = run_pack_job(job, packing, view.advance, _on_cluster(job))
        seconds = time.perf_counter() - started
        rows.append(_row(split, "pack", packed))
        say(f"{split}: {view.images:,} images in {packing.num_shards:,} shards, {view.images / seconds:,.0f} images/s")
    console.print(table(target, _COLUMNS, rows))
    say(f"verified; train from it with data.root={target}")
    if answering is not None:
        _show_loss(answering, target)
    return 0


def verify(root: str, splits: Sequence[str]) -> int:
    """Read every byte of a pack."""
    rows = [_row(split, "pack", verify_pack(root, split)) for split in splits or SPLITS]
    console.print(table(root, _COLUMNS, rows))
    say("every byte is what was packed")
    return 0


def _with_teacher(recipe: str, root: str) -> RunConfig:
    """Return a recipe on a source of images. Refused if its teacher cannot answer for others than it has seen."""
    from cluster.evaluation import with_online_teacher
    from ops import catalog

    config = with_online_teacher(catalog.load_here(recipe, [f"data.root={root}"]))
    without = [teacher for teacher in config.all_teachers if teacher.cached or teacher.lacks_weights]
    if without or not config.all_teachers:
        what = f"its teacher {without[0].model!r} has no weights here" if without else "the recipe has no teacher"
        raise Refused(f"--teacher {recipe}: {what}; give a recipe of one teacher with its weights")
    return config


def _show_loss(config: RunConfig, target: str) -> None:
    """Print the accuracy of a recipe's teacher on the validation images, as the recipe has them and packed."""
    from cluster.evaluation import evaluate_networks, find_target
    from cluster.recipe.paths import absolute
    from cluster.scores import TITLES

    found = []
    packed = config.model_copy(update={"data": config.data.model_copy(update={"root": target})})
    rate = "mAP" if config.data.multi_label else "top1"
    for one in (config, absolute(packed, Path.cwd())):
        images = find_target(one, None, None)
        teacher = evaluate_networks(one, None, images).teacher
        if teacher is None:
            raise Refused(
                "--teacher: the recipe's teacher names no classes, so it has no accuracy; the pack is complete"
            )
        found.append(teacher.metrics()[rate])
    before, after = found
    say(
        f"the teacher's {TITLES[rate]} on {len(images.index):,} validation images: {before:.2%} as they were, "
        f"{after:.2%} as they are packed ({after - before:+.2%})"
    )


def _row(split: str, kind: str, source: Source) -> list[str]:
    size = decimal(int(source.table["num_bytes"].to_numpy().sum()))
    counts = [f"{len(source):,}", f"{len(source.classes):,}", size, f"{len(source.broken):,}"]
    return [split, kind, *counts, source.fingerprint[:16]]


def _say_broken(split: str, messages: Sequence[str]) -> None:
    """Print what is wrong with the first of the broken images."""
    for message in messages[:_MOST_BROKEN]:
        say(f"broken: {message}")
    if len(messages) > _MOST_BROKEN:
        say(f"and {len(messages) - _MOST_BROKEN:,} more broken images of {split}")


def _sizes(source: Source) -> str:
    """Return the number of images of the smallest and of the largest class, as text."""
    counts = source.class_counts
    few, many = int(counts.argmin()), int(counts.argmax())
    return (
        f"{counts[few]:,} images of the smallest class ({source.classes[few]}), {counts[many]:,} of the largest "
        f"({source.classes[many]})"
    )


def _say_other_classes(sources: Sequence[Source]) -> None:
    """Print that splits do not have the same classes, if so: a run on them would be refused."""
    for other in sources[1:]:
        try:
            check_same_classes(sources[0], other)
        except Refused as refused:
            say(f"no run can use these together: {refused}")


def _on_cluster(job: PackJob) -> Shards | None:
    """Return the packing of shards on the Ray cluster that RAY_ADDRESS names; None without one: pack here."""
    if not os.environ.get("RAY_ADDRESS"):
        return None
    import ray

    from cluster.nodes.resources import runtime_env
    from cluster.nodes.start import join_cluster
    from cluster.packing import shards_on_cluster

    if not ray.is_initialized():
        join_cluster(runtime_env=runtime_env(), log_to_driver=False)
    return shards_on_cluster(job)


class _PackView:
    """Counts packed images, with a bar on a terminal."""

    def __init__(self, split: str) -> None:
        self.images = 0
        columns = (
            TextColumn("packing {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(split, total=None)

    def __enter__(self) -> _PackView:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, images: int) -> None:
        """Count the images of a finished shard."""
        self.images += images
        self._bar.update(self._task, completed=self.images)

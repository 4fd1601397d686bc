"""Images per second from every container, of fetching only and of a whole loader, next to what others offer.

The images are taken from a folder or a tar of JPEGs, each --copies times under different names, and lie in the page
cache. All subjects take turns in every round, each in a process of its own; the table has the median of the rounds with
lowest and highest. Processor time is that of the process and everything it has started, so that the comparison also
holds on a machine with other work. Loaders have --workers threads or processes. Other libraries are measured if they
are installed: webdataset, mosaicml-streaming, litdata; a separate environment will do, whose Python runs this module.

    python -m ops.benchmarks.images --images imagenet-fullsize-96.tar
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch

from kdcore.errors import Refused
from ops.benchmarks.image_subjects import OTHERS, SUBJECTS, WRITERS
from ops.console import console, say, table
from ops.facts import version, write
from pipelines.data.index import build_index

Rounds = list[dict[str, float]]  # of one subject: what `measure` returns
TITLES = {"fetch": "encoded images, fetched by one thread", "batches": "whole loader"}
_AHEAD = 8  # batches: more than any subject prepares before the first is taken


def write_folder(images: Path, folder: Path, copies: int) -> int:
    """Write the JPEGs into folder/train/<class>/, each `copies` times; return their number.

    A file's class is the part of its name before the first underscore.
    """
    num = 0
    for name, content in _jpegs(images):
        place = folder / "train" / name.partition("_")[0]
        place.mkdir(parents=True, exist_ok=True)
        for copy in range(copies):
            (place / f"{Path(name).stem}_{copy:03d}.jpg").write_bytes(content)
            num += 1
    if num == 0:
        raise Refused(f"{images} holds no JPEGs; give a folder or a tar of them with --images")
    return num


def _jpegs(images: Path) -> Iterator[tuple[str, bytes]]:
    if images.is_dir():
        for path in sorted(images.rglob("*")):
            if path.suffix.lower() in (".jpg", ".jpeg"):
                yield path.name, path.read_bytes()
        return
    with tarfile.open(images) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).suffix.lower() in (".jpg", ".jpeg"):
                content = tar.extractfile(member)
                assert content is not None, "it is a file"
                yield Path(member.name).name, content.read()


def write_containers(work: Path) -> list[str]:
    """Write what the subjects read, and return the names of those that can be measured."""
    source = build_index(work / "files", "train", work / "index", progress=False)
    written = {"files"}
    for name, write_container in WRITERS.items():
        (work / name).mkdir()
        try:
            write_container(source, work / name)
            written.add(name)
        except ImportError as error:
            say(f"left out: {name} ({error})")
    return [name for name, (container, _) in SUBJECTS.items() if container in written]


def measure(counts: Iterator[int], seconds: float) -> dict[str, float]:
    """Return images per second, and milliseconds of CPU per image, of this process and its children.

    What is prepared before the first is taken does not count.
    """
    for _ in range(_AHEAD):
        next(counts)
    started, cpu, images = time.perf_counter(), _cpu_seconds(), 0
    while time.perf_counter() - started < seconds:
        images += next(counts)
    wall = time.perf_counter() - started
    return {"images_per_second": images / wall, "cpu_ms": 1e3 * (_cpu_seconds() - cpu) / images}


def _cpu_seconds() -> float:
    """Return the processor time of this process and of everything it has started."""
    process = psutil.Process()
    used = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(times.user + times.system + times.children_user + times.children_system for times in used)


def take_turn(name: str, work: Path, workers: int, seconds: float) -> dict[str, dict[str, float]]:
    """Measure one subject in this process."""
    torch.set_num_threads(1)
    container, open_subject = SUBJECTS[name]
    subject = open_subject(work / container, workers)
    return {"fetch": measure(subject.fetch(), seconds), "batches": measure(subject.batches(), seconds)}


def in_a_process(name: str, work: Path, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure one subject in a process of its own, so that no other subject's threads and processes run meanwhile.

    It is forked from a process that has imported the libraries and done nothing else.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["ops.benchmarks.images"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_turn, args=(theirs, name, work, args.workers, args.seconds))
    process.start()
    theirs.close()
    found: dict[str, dict[str, float]] = ours.recv()  # EOFError where the turn ended without a result; it said why
    process.join()
    return found


def _send_turn(to: Connection, name: str, work: Path, workers: int, seconds: float) -> None:
    to.send(take_turn(name, work, workers, seconds))


def row(name: str, results: Rounds, files: Rounds) -> list[str]:
    """Return a table's row: the median with lowest and highest, CPU milliseconds per image, and those over `files`'.

    The last ratio is taken round by round.
    """
    rates = sorted(result["images_per_second"] for result in results)
    cpu = [result["cpu_ms"] for result in results]
    over = sorted(ours / theirs["cpu_ms"] for ours, theirs in zip(cpu, files, strict=False))
    return [
        name,
        f"{np.median(rates):,.0f}",
        f"{rates[0]:,.0f} - {rates[-1]:,.0f}",
        f"{np.median(cpu):.3f}",
        f"{np.median(over):.2f} ({over[0]:.2f} - {over[-1]:.2f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER|TAR", help="JPEGs")
    parser.add_argument("--copies", type=int, default=16, help="of each image (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads or processes (%(default)s)")
    args = parser.parse_args()
    results: dict[str, dict[str, Rounds]] = {what: {} for what in TITLES}
    others = {name: version(name) for name in OTHERS}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        num = write_folder(args.images, work / "files", args.copies)
        names = write_containers(work)
        for _ in range(args.rounds):
            turns = {name: in_a_process(name, work, args) for name in names}
            for what in TITLES:
                for name in names:
                    results[what].setdefault(name, []).append(turns[name][what])
            # After every round: a run that is cut off leaves whole rounds.
            path = write("images", {"num_images": num, "others": others, **results})
    columns = ["", "images/s, median", "lowest - highest", "CPU ms/image", "over files'"]
    for what, found in results.items():
        title = f"{TITLES[what]}; {num:,} images, {args.workers} workers, n = {args.rounds}"
        console.print(
            table(title, columns, [row(name, some, found["stillhouse, files"]) for name, some in found.items()])
        )
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()

"""Images a second from every container, of fetching alone and of a whole loader, beside what others offer.

The images are taken from a folder or a tar of JPEGs, each --copies times under names of its own, and lie in the page
cache. All subjects take turns in every round, each for --seconds; the table has the median of the rounds with lowest
and highest. Loaders have as many threads or processes as --workers says.

    python -m ops.benchmarks.images --images imagenet-fullsize-96.tar
"""

from __future__ import annotations

import argparse
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import ImageFolder

from kdcore.errors import Refused
from ops.benchmarks.image_subjects import (
    MapStyle,
    Ours,
    WebDataset,
    encoded_file,
    open_litdata,
    open_mds,
    write_pack,
)
from ops.console import console, say, table
from ops.facts import write

_AHEAD = 8  # batches: more than anyone prepares before the first is taken
Rounds = list[dict[str, float]]  # of one subject: what `measure` returns
Subject = Any  # with fetch() and batches(), iterators over numbers of images


def write_folder(images: Path, folder: Path, copies: int) -> int:
    """Write the JPEGs into folder/train/<class>/, each `copies` times; return how many there are.

    A class is what stands before a name's first underscore.
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


def write_tar(folder: Path, tar: Path) -> None:
    """Write the files of an image folder into one WebDataset tar, in random order, with their labels."""
    files = sorted((folder / "train").rglob("*.jpg"))
    classes = sorted({file.parent.name for file in files})
    tar.parent.mkdir()
    with tarfile.open(tar, "w") as out:
        for number in np.random.default_rng(0).permutation(len(files)):
            file = files[number]
            for name, content in (
                (file.name, file.read_bytes()),
                (f"{file.stem}.cls", str(classes.index(file.parent.name)).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                out.addfile(member, BytesIO(content))


def open_subjects(work: Path, workers: int) -> dict[str, Subject]:
    """Return {name: subject}, each with its own container; one that cannot be had is left out, and named."""
    files, index = work / "files", work / "index"
    ours = Ours(files, index, workers)
    num = len(ours.source)
    write_tar(files, work / "tar" / "train.tar")
    write_pack(ours.source, work / "pack")
    folder = ImageFolder(str(files / "train"))
    made: dict[str, Callable[[], Subject]] = {
        "stillhouse, tar": lambda: Ours(work / "tar", index, workers),
        "stillhouse, pack": lambda: Ours(work / "pack", index, workers),
        "torchvision, files": lambda: MapStyle(partial(encoded_file, folder), num, workers),
        "webdataset, tar": lambda: WebDataset(work / "tar" / "train.tar", workers),
        "mosaicml-streaming, MDS": lambda: MapStyle(open_mds(ours.source, work / "mds"), num, workers),
        "litdata, chunks": lambda: MapStyle(open_litdata(ours.source, work / "litdata"), num, workers),
    }
    subjects: dict[str, Subject] = {"stillhouse, files": ours}
    for name, make in made.items():
        try:
            subjects[name] = make()
            next(subjects[name].fetch())
        except Exception as error:  # others' libraries fail in ways of their own, and the rest is still worth measuring
            subjects.pop(name, None)
            say(f"left out: {name} ({type(error).__name__}: {error})")
    return subjects


def measure(counts: Iterator[int], seconds: float) -> dict[str, float]:
    """Return images a second, and milliseconds of this process's CPU an image; what is prepared ahead is not counted.

    The iterator begins anew for every turn and ends with it, so that nobody prepares anything in another's turn.
    """
    for _ in range(_AHEAD):
        next(counts)
    started, cpu, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        images += next(counts)
    wall = time.perf_counter() - started
    return {"images_per_second": images / wall, "cpu_ms": 1e3 * (time.process_time() - cpu) / images}


def take_turns(subjects: dict[str, Subject], what: str, rounds: int, seconds: float) -> dict[str, Rounds]:
    """Return {name: a measurement a round}; all of a round take turns."""
    found: dict[str, Rounds] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name in list(found):
            counts = getattr(subjects[name], what)()
            try:
                found[name].append(measure(counts, seconds))
            except Exception as error:  # as above
                say(f"left out of {what}: {name} ({type(error).__name__}: {error})")
                del found[name]
            finally:
                counts.close()
    return found


def row(name: str, results: Rounds) -> list[str]:
    """Return a table's row: the median with lowest and highest, and CPU milliseconds an image."""
    rates = sorted(result["images_per_second"] for result in results)
    cpu = float(np.median([result["cpu_ms"] for result in results]))
    return [name, f"{np.median(rates):,.0f}", f"{rates[0]:,.0f} - {rates[-1]:,.0f}", f"{cpu:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, metavar="FOLDER|TAR", help="JPEGs")
    parser.add_argument("--copies", type=int, default=16, help="of each image (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads or processes (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        num = write_folder(args.images, work / "files", args.copies)
        subjects = open_subjects(work, args.workers)
        results = {what: take_turns(subjects, what, args.rounds, args.seconds) for what in ("fetch", "batches")}
    columns = ["", "images/s, median", "lowest - highest", "CPU ms/image, this process"]
    titles = {"fetch": "encoded images, fetched by one thread", "batches": f"whole loader, {args.workers} workers"}
    for what, found in results.items():
        title = f"{titles[what]}; {num:,} images, n = {args.rounds}"
        console.print(table(title, columns, [row(name, some) for name, some in found.items()]))
    console.print(f"written: {write('images', {'num_images': num, **results})}")


if __name__ == "__main__":
    main()

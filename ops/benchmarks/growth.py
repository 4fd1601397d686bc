"""What grows with the number of samples: seconds and memory to open what a run opens.

That is the index, a held-out split, the view plan and a cache's manifest, at 50 thousand, 1.28 million and 14 million
samples.

The indexes are synthetic (no images), each size is measured in a process of its own, and memory is the growth of that
process. Listing a folder is measured on 50 thousand empty files, since the file system sets its pace.

    python -m ops.benchmarks.growth
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from ops.console import console, table
from ops.facts import write
from pipelines.cache.columns import PlainColumn
from pipelines.cache.manifest import MANIFEST, Manifest, Part, Plan, load_manifest
from pipelines.cache.store import Shard
from pipelines.data.folder import list_folder
from pipelines.data.source import Source
from pipelines.data.source_table import source_table
from pipelines.places import Place
from pipelines.views.plan import ViewPlan
from pipelines.views.policy import ViewPolicy

SIZES = (50_000, 1_280_000, 14_000_000)
NUM_CLASSES, NUM_VIEWS, ROWS_PER_SHARD, BATCH = 1000, 100, 16_384, 256
MORE = 200  # batches: whether memory grows with what is read


def synthetic_index(num_samples: int) -> pa.Table:
    """Return the table of an index: classes of equal size, pictures of 500 x 375 pixels."""
    ids = np.arange(num_samples)
    labels = (ids * NUM_CLASSES // num_samples).astype(np.int32)
    folder = pc.utf8_lpad(pc.cast(pa.array(labels), pa.string()), 5, "0")
    name = pc.utf8_lpad(pc.cast(pa.array(ids), pa.string()), 12, "0")
    paths = pc.binary_join_element_wise("train", folder, name, "/").cast(pa.large_string())
    columns = {
        "path": paths,
        "label": labels,
        "num_bytes": np.full(num_samples, 110_000),
        "height": np.full(num_samples, 375, dtype=np.int32),
        "width": np.full(num_samples, 500, dtype=np.int32),
        "crc32": (ids & 0xFFFFFFFF).astype(np.uint32),
    }
    return source_table(tuple(f"{label:05d}" for label in range(NUM_CLASSES)), pa.table(columns))


def synthetic_manifest(num_samples: int) -> Manifest:
    """Return the manifest of dense logits in NUM_VIEWS views, without the shards."""
    part = Part(
        num_rows=num_samples,
        num_views=NUM_VIEWS,
        columns=(PlainColumn(name="logits", shape=(1000,), coding="float16"),),
    )
    plan = Plan(identity={}, parts={"train": part}, rows_per_shard=ROWS_PER_SHARD, batch_size=BATCH)
    shards = tuple(
        Shard(
            part=u.part, view=u.view, start=u.start, stop=u.stop, num_bytes=2000 * (u.stop - u.start), sha256="0" * 64
        )
        for u in plan.units()
    )
    return Manifest(plan=plan, constants="0" * 64, error={}, shards=shards)


def with_time_and_memory(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Return the result of an action, its seconds, and the growth of the process in MiB."""
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    result = action()
    seconds = time.perf_counter() - started
    return result, {"seconds": seconds, "mib": (process.memory_info().rss - before) / 2**20}


def write_files(num_samples: int, folder: Path) -> None:
    """Write the synthetic index and manifest, for a process that has not made them."""
    content = synthetic_index(num_samples)
    with pa.OSFile(str(folder / "index.arrow"), "wb") as file, pa.ipc.new_file(file, content.schema) as writer:
        writer.write_table(content)
    synthetic_manifest(num_samples).write(folder)


def measure(folder: Path) -> dict[str, Any]:
    """Measure opening everything, and one batch of each, in this process."""
    path, found = folder / "index.arrow", {}

    def open_index() -> Source:
        classes = tuple(f"{label:05d}" for label in range(NUM_CLASSES))
        return Source(str(folder), classes, pa.ipc.open_file(pa.memory_map(str(path))).read_all())

    def batch_of_views() -> object:
        ids = plan.order(1, np.arange(BATCH))
        index.names(ids)
        return plan.views(1, ids, index.heights[ids], index.widths[ids])

    def more_batches() -> None:
        for start in np.linspace(0, len(index) - BATCH, MORE).astype(np.int64):
            ids = plan.order(2, np.arange(start, start + BATCH))
            plan.views(2, ids, index.heights[ids], index.widths[ids])

    index, found["open the index"] = with_time_and_memory(open_index)
    policy = ViewPolicy(size=224, crop="resized", mixup_alpha=0.2)
    plan, found["make the view plan"] = with_time_and_memory(lambda: ViewPlan(policy, 0, len(index)))
    _, found["first batch: ids, names, views"] = with_time_and_memory(batch_of_views)
    _, found["another batch"] = with_time_and_memory(batch_of_views)
    _, found[f"{MORE} more, over the epoch"] = with_time_and_memory(more_batches)
    _, found["hold out 2 %, with its fingerprint"] = with_time_and_memory(lambda: index.split(0.02, 0)[0].fingerprint)
    _, found["read the manifest"] = with_time_and_memory(lambda: load_manifest(folder))
    sizes = {"index": path.stat().st_size, "manifest": (folder / MANIFEST).stat().st_size}
    return {"num_samples": len(index), "steps": found, "file_bytes": sizes}


def measure_listing(num_files: int = SIZES[0]) -> dict[str, float]:
    """Measure listing a folder of empty files."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for label in range(100):
            folder = root / "train" / f"{label:05d}"
            folder.mkdir(parents=True)
            for number in range(num_files // 100):
                (folder / f"{number:06d}.jpg").touch()
        _, found = with_time_and_memory(lambda: list_folder(Place.of(root, "root"), "train"))
    return {"num_files": num_files, **found}


def measure_in_processes(num_samples: int) -> dict[str, Any]:
    """Return the measurements of one size: files written by one process, opened by another."""
    with tempfile.TemporaryDirectory() as folder:
        for action in ("write", "measure"):
            command = [sys.executable, "-m", "ops.benchmarks.growth", f"--{action}", str(num_samples), folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def growth(sizes: list[int], values: list[float]) -> float:
    """Return the exponent p of size^p between the two largest sizes; nan where nothing was measurable."""
    if min(values[-2:]) <= 0:
        return math.nan
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def main() -> None:
    """Measure the requested sizes, and write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--write", nargs=2, metavar=("N", "DIR"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("N", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_files(int(args.write[0]), Path(args.write[1]))
    elif args.measure:
        print(json.dumps(measure(Path(args.measure[1]))))
    else:
        report(args.sizes, [measure_in_processes(size) for size in args.sizes])


def report(sizes: list[int], runs: list[dict[str, Any]]) -> None:
    """Write the results and print them: a row per step, a column per size."""
    rows, exponents = [], {}
    for name in runs[0]["steps"]:
        seconds = [run["steps"][name]["seconds"] for run in runs]
        exponents[name] = growth(sizes, seconds) if len(sizes) > 1 else math.nan
        cells = [f"{run['steps'][name]['seconds'] * 1e3:,.1f} ms, {run['steps'][name]['mib']:,.0f} MiB" for run in runs]
        rows.append([name, *cells, f"{exponents[name]:.2f}"])
    columns = ["", *(f"{size:,} samples" for size in sizes), "seconds ~ N^p"]
    console.print(table("Opened in a process of its own", columns, rows))
    listed = measure_listing()
    console.print(f"listing {SIZES[0]:,} files: {listed['seconds']:.2f} s")
    console.print(f"written: {write('growth', {'runs': runs, 'exponents': exponents, 'listing': listed})}")


if __name__ == "__main__":
    main()

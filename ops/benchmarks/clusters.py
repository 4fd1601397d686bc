"""What one published ImageNet recipe would take on 8, 64 and 1,024 GPUs, by `ops.capacity`: arithmetic, no measurement.

No such machine is here, so `ASSUMED` is assumed; the bytes are those of the networks, which are built here.

    python -m ops.benchmarks.clusters
"""

from __future__ import annotations

from typing import Any

from ops.capacity.report import as_values, on_workers
from ops.capacity.workload import answer
from ops.console import say
from ops.facts import write

RECIPE = "imagenet/resnet34-resnet18-dist"
IMAGES_OF_A_GPU = 32  # as published, for 8 of them
GPUS = {8: 1, 64: 8, 1024: 128}  # {GPUs: nodes}
CACHED = ("teacher.source=cache", "cache.dir=CACHE", "views.num_views=100")  # a view for every epoch: the same run
ASSUMED = {
    "images_per_second": 1000.0,
    "num_images": 1_281_167.0,
    "num_classes": 1000.0,
    "image_kb": 115.0,
    "read_mb_per_second": 2000.0,
    "link_gbit": 100.0,
    "gpu_link_gbit": 2400.0,
    "link_microseconds": 10.0,
    "checkpoint_seconds": 0.05,
    "write_mb_per_second": 500.0,
    "mtbf_hours": 50_000.0,
    "repair_minutes": 10.0,
    "restart_seconds": 120.0,
}


def main() -> None:
    """Compute and write the results."""
    say(f"written: {write('clusters', {'recipe': RECIPE, 'assumed': ASSUMED, 'clusters': clusters()})}")


def clusters() -> dict[str, Any]:
    """Return the answer for each number of GPUs."""
    found = {}
    for gpus, nodes in GPUS.items():
        config = on_workers(RECIPE, [*CACHED, f"train.batch_size={IMAGES_OF_A_GPU * gpus}"], gpus)
        found[str(gpus)] = as_values(config, answer(config, nodes, ASSUMED, seconds=0))
    return found


if __name__ == "__main__":
    main()

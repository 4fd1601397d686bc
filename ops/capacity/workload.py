"""From a recipe, with what is given or measured here, to the numbers that an estimate takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from cluster.batches import Batches
from cluster.forecast import forecast
from cluster.images import open_data
from cluster.recipe.config import RunConfig
from cluster.sweep.room import TRIAL_BYTES
from kdcore.errors import Refused
from ops.capacity.estimate import Cluster, Estimate, Workload
from ops.capacity.options import Values
from ops.capacity.sizes import Sizes, measure_sizes


@dataclass(frozen=True)
class Answer:
    """What a recipe takes on a cluster, the bytes of its training state, and the numbers that all of it is based on.

    trial_bytes: of the processes that drive one run of a sweep.
    """

    estimate: Estimate
    sizes: Sizes
    values: Values
    trial_bytes: int = TRIAL_BYTES


def answer(config: RunConfig, num_nodes: int, given: Mapping[str, float], seconds: float) -> Answer:
    """Return what a recipe takes on its workers. seconds: how long to time its steps, if that is needed."""
    found = found_here(config, given, seconds)
    images = Values(given, found)
    num_images = int(images["num_images"])
    if num_images < config.train.batch_size:
        raise Refused(f"train.batch_size {config.train.batch_size} is more than {num_images:,} training images")
    sizes = measure_sizes(config, num_images, int(images["num_classes"]))
    write_mb_per_second = sizes.checkpoint_bytes / 1e6 / sizes.write_seconds
    checkpoint = {"checkpoint_seconds": sizes.checkpoint_seconds, "write_mb_per_second": write_mb_per_second}
    values = Values(given, found | checkpoint)
    workload = workload_of(config, values, sizes, num_images)
    return Answer(Estimate(workload, cluster_of(config, num_nodes, values)), sizes, values)


def found_here(config: RunConfig, given: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Return the numbers of the recipe's images, and the speed of one worker; only what is not given is measured."""
    found: dict[str, float] = {}
    if not {"num_images", "num_classes"} <= given.keys():
        train = open_data(config)["train"]
        found = {
            "num_images": len(train),
            "num_classes": len(train.classes),
            "image_kb": pc.mean(train.table["num_bytes"]).as_py() / 1e3,
        }
    if "images_per_second" not in given:
        if not found:
            raise Refused(
                "the speed is measured with the recipe's own images; give --images-per-second, or leave --num-images "
                "and --num-classes out"
            )
        size = {"micro_batch": config.micro_batch}
        alone = config.model_copy(update={"train": config.train.model_copy(update=size)})
        found["images_per_second"] = forecast(alone, seconds).images_per_second
    return found


def workload_of(config: RunConfig, values: Values, sizes: Sizes, num_images: int) -> Workload:
    """Return a recipe's run on its workers, for an estimate."""
    train, scaling = config.train, config.scaling
    batches = Batches.of(config, num_images, scaling.num_workers)
    return Workload(
        total_steps=train.total_steps(batches.steps_per_epoch),
        batch_size=train.batch_size,
        micro_batch=config.micro_batch,
        images_per_second=values["images_per_second"],
        image_bytes=1e3 * values["image_kb"],
        cached_bytes=sizes.cached_bytes,
        reduced_bytes=sizes.gradient_bytes,
        interval_steps=config.checkpoint.every_steps or batches.steps_per_epoch,
        checkpoint_seconds=values["checkpoint_seconds"],
        min_workers=scaling.min_workers,
        max_failures=None if scaling.max_failures < 0 else scaling.max_failures,
        resize_seconds=scaling.resize_seconds,
    )


def cluster_of(config: RunConfig, num_nodes: int, values: Values) -> Cluster:
    """Return a cluster of `num_nodes` nodes with a recipe's workers on them."""
    links = [values["link_gbit"]] if num_nodes > 1 else []  # those that a ring passes through
    if config.scaling.num_workers > num_nodes:
        links.append(values["gpu_link_gbit"])
    return Cluster(
        num_workers=config.scaling.num_workers,
        num_nodes=num_nodes,
        link_bytes_per_second=min(links, default=math.inf) * 1e9 / 8,
        link_latency_seconds=values["link_microseconds"] / 1e6,
        read_bytes_per_second=1e6 * values["read_mb_per_second"],
        mtbf_seconds=3600 * values["mtbf_hours"],
        repair_seconds=60 * values["repair_minutes"],
        restart_seconds=values["restart_seconds"],
    )

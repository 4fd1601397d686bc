"""The ImageNet recipes rehearsed: every line of a full run, on 20 classes and few images, through Ray, DALI and cache.

The right architectures at 224 pixels; teachers with random weights where real ones would have to be downloaded, and one
further recipe with a teacher that has real ones. Two epochs each on 2 workers: the teacher's outputs are built into a
cache, the student trains from it, is evaluated, checkpointed and deployed. The results prove the path, not an accuracy.
Also an estimate of the full run on 8 and 64 GPUs, from published speeds (`FIGURES`), not from this machine's.

A recipe that has been rehearsed is not rehearsed again; delete --output for a fresh start.

    python -m ops.benchmarks.dry_run --data imagenet20 --lite0 efficientnet-lite0-57934424.pth
"""

from __future__ import annotations

import argparse
import json
import math
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from rich.filesize import decimal

from cluster.cache.job import build
from cluster.cache.outlook import Outlook, Speeds
from cluster.nodes.resources import ray_session
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.teachers.stored import TRAIN
from cluster.training.launch import launch
from ops import catalog
from ops.console import console, say, table
from ops.facts import write
from pipelines.cache.columns import LOGITS
from pipelines.cache.manifest import Manifest
from pipelines.cache.rows import row_bytes

IMAGENET_IMAGES, CLASSES = 1_281_167, 1000
VIEWS = 50  # of a full cache: enough for 150 epochs with other caches of this kind
BATCH = ["train.batch_size=32", "train.micro_batch=16"]
RECIPES: dict[str, list[str]] = {
    "imagenet/resnet34-resnet18-wttm": [],
    "imagenet/resnet50-mobilenetv1-wttm": [],
    "imagenet/deit3_small-deit_tiny-wttm": ["schedule.warmup_epochs=1"],  # 20 of 300 epochs in the recipe
    "imagenet/resnet50-resnet18-simkd": ["cache.features=int8"],
}
LITE0 = "efficientnet_lite0-resnet18-wttm"  # real weights: the first recipe with another teacher

# Images per second of one RTX 3090 (AMP, channels-last, synthetic data), from timm's benchmark tables: a student's
# training step, a teacher's answer. There is none for MobileNetV1; ResNet-18, the slower of the two, stands for it.
SOURCE = "timm's benchmark tables, one RTX 3090, AMP, channels-last"
FIGURES = {
    "imagenet/resnet34-resnet18-wttm": (3482, 6530),
    "imagenet/resnet50-mobilenetv1-wttm": (3482, 3730),
    "imagenet/deit3_small-deit_tiny-wttm": (2290, 4284),
    "imagenet/resnet50-resnet18-simkd": (3482, 3730),
}
EFFICIENCY = 6.72 / 8  # what 8 GPUs keep in NVIDIA's record of ResNet-50 with DALI; assumed for 64, too


def main() -> None:
    """Rehearse every recipe, and write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of imagenet20-224-{train,val}.tar and classes.json")
    parser.add_argument("--lite0", help="weights of EfficientNet-Lite0, for the recipe with a real teacher")
    parser.add_argument("--per-class", type=int, default=4, help="training images of each class (%(default)s)")
    parser.add_argument("--output", default="outputs/dry-run", help="folder of runs (%(default)s)")
    args = parser.parse_args()
    output = Path(args.output).absolute()
    images = unpack(Path(args.data), output / "images", {"train": args.per_class, "val": 1})
    configs = {name: rehearsal(name, changes, images, output) for name, changes in RECIPES.items()}
    if args.lite0:
        configs[LITE0] = with_lite0(args, images, output)
    rows = {}
    with ray_session(next(iter(configs.values()))):
        for name, config in configs.items():
            row = rehearse(config)
            rows[name] = row | {"full_run": full_run(name, row["row_bytes"])}
            say(f"{name}: {rows[name]['wall_seconds']:.0f} s")
    about = {"images": dict(image_counts(images)), "figures": SOURCE, "efficiency": EFFICIENCY, "views": VIEWS}
    path = write("dry_run", {**about, "rows": rows})
    report(rows)
    say(f"written: {path}")


def unpack(source: Path, target: Path, per_class: dict[str, int]) -> Path:
    """Write the first images of each class as a folder."""
    for split, count in per_class.items():
        taken: Counter[str] = Counter()
        with tarfile.open(source / f"imagenet20-224-{split}.tar") as tar:
            for member in tar:
                label = Path(member.name).parent.name
                if member.isfile() and taken[label] < count:
                    taken[label] += 1
                    tar.extract(member, target, filter="data")
    return target


def image_counts(folder: Path) -> Counter[str]:
    """Return the number of images of each split."""
    return Counter(path.relative_to(folder).parts[0] for path in folder.rglob("*.JPEG"))


def rehearsal_overrides(name: str, images: Path, output: Path) -> list[str]:
    """Return the overrides that a rehearsal applies to any recipe."""
    return [
        *BATCH,
        f"name={name.rpartition('/')[2]}",
        f"output_dir={output}",
        f"data.root={images}",
        "data.num_threads=1",
        "train.epochs=2",
        "views.num_views=2",
        "cache.batch_size=16",
        f"cache.dir={output}/cache/{name.rpartition('/')[2]}",
        "teacher.source=cache",
        "teacher.pretrained=false",
        "scaling={num_workers: 2}",
        "tracking.system_metrics=false",
        "tracking.every_steps=1",
    ]


def rehearsal(name: str, changes: list[str], images: Path, output: Path) -> RunConfig:
    """Return a recipe of the papers with a teacher of random weights."""
    model = catalog.load(name).teacher
    assert model is not None, "every recipe here distils"
    weights = random_weights(model.model, output / "teachers", len(list((images / "train").iterdir())))
    made = catalog.load(name, [*rehearsal_overrides(name, images, output), f"teacher.checkpoint={weights}", *changes])
    return absolute(made, Path.cwd())


def with_lite0(args: argparse.Namespace, images: Path, output: Path) -> RunConfig:
    """Return the recipe with EfficientNet-Lite0 as its teacher.

    Its classifier is cut down to the classes present.
    """
    indices = output / "class_indices.json"
    described = json.loads((Path(args.data) / "classes.json").read_text())
    indices.write_text(json.dumps({one["wnid"]: one["imagenet1k_index"] for one in described}))
    teacher = {
        "model": "tf_efficientnet_lite0",
        "checkpoint": args.lite0,
        "checkpoint_keys": "positions",
        "class_indices": str(indices),
    }
    recipe = next(iter(RECIPES))
    own = [f"teacher={json.dumps(teacher)}", "data.mean=[0.5, 0.5, 0.5]", "data.std=[0.5, 0.5, 0.5]"]
    return catalog.load_here(recipe, [*own, *rehearsal_overrides(LITE0, images, output)])


def random_weights(model: str, folder: Path, num_classes: int) -> Path:
    """Write a file of the network's initial weights."""
    path = folder / f"{model}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = timm.create_model(model, num_classes=num_classes)
        safetensors.torch.save_file(network.state_dict(), path)
    return path


def rehearse(config: RunConfig) -> dict[str, Any]:
    """Build the cache and train from it; return the results, which are kept next to the run.

    Raises where a loss is not finite.
    """
    remembered = config.run_dir / "rehearsed.json"
    if remembered.exists():
        return json.loads(remembered.read_text())
    started = time.perf_counter()
    manifest = build(config)
    built = time.perf_counter()
    result = launch(config)
    assert math.isfinite(result.metrics["train/loss"]), f"{config.name}: the loss is {result.metrics['train/loss']}"
    seen = {
        "wall_seconds": time.perf_counter() - started,
        "build_seconds": built - started,
        "steps": result.steps,
        "loss": result.metrics["train/loss"],
        "top1": result.metrics["val/top1"],
        "teacher_top1": result.metrics["val/teacher_top1"],
        "cache_bytes": manifest.num_bytes,
        "row_bytes": full_row_bytes(manifest),
    }
    remembered.write_text(json.dumps(seen))
    return seen


def full_row_bytes(manifest: Manifest) -> int:
    """Return the bytes of one view in a cache of all classes; features have the same shape."""
    columns = manifest.plan.parts[TRAIN].columns
    return row_bytes([c.model_copy(update={"shape": (CLASSES,)}) if c.name == LOGITS else c for c in columns])


def full_run(name: str, bytes_per_row: int) -> dict[str, Any] | None:
    """Estimate {GPUs: what the recipe would take on ImageNet with the teacher online, and from a cache}.

    In this estimate nothing waits for the loader and the losses cost nothing. None where no speeds are published.
    """
    if name not in FIGURES:
        return None
    student, teacher = (speed * EFFICIENCY for speed in FIGURES[name])
    epochs = catalog.load(name).train.epochs
    estimates = {}
    for num_gpus in (8, 64):
        speeds = Speeds(loader=math.inf, teacher=teacher, student=student, overlap=True)
        seen = Outlook(speeds, IMAGENET_IMAGES, VIEWS, epochs, num_gpus, bytes_per_row)
        estimates[str(num_gpus)] = {
            "online_hours": seen.online_seconds * epochs / 3600,
            "build_hours": seen.build_seconds / 3600,
            "cached_hours": seen.cached_seconds * epochs / 3600,
            "cache_bytes": seen.num_bytes,
        }
    return {"epochs": epochs, "gpus": estimates}


def report(rows: dict[str, dict[str, Any]]) -> None:
    """Print the table of the rehearsals."""
    columns = ["recipe", "build s", "whole s", "steps", "loss", "teacher top-1"]
    shown = [
        [
            name.rpartition("/")[2],
            *(f"{row[key]:.0f}" for key in ("build_seconds", "wall_seconds")),
            str(row["steps"]),
            f"{row['loss']:.3f}",
            f"{row['teacher_top1']:.1%}",
        ]
        for name, row in rows.items()
    ]
    console.print(table("rehearsed: 20 classes, 2 epochs, 2 workers", columns, shown))
    columns = ["recipe", "8 GPUs online h", "8 build + cached h", "64 online h", "64 build + cached h", "cache"]
    shown = [
        [name.rpartition("/")[2], *hours(row["full_run"]["gpus"])] for name, row in rows.items() if row["full_run"]
    ]
    console.print(table(f"the full run, an estimate from {SOURCE}; a cache of {VIEWS} views", columns, shown))


def hours(gpus: dict[str, dict[str, float]]) -> list[str]:
    cells = []
    for seen in gpus.values():
        cells += [f"{seen['online_hours']:.1f}", f"{seen['build_hours']:.1f} + {seen['cached_hours']:.1f}"]
    return [*cells, decimal(int(gpus["8"]["cache_bytes"]))]


if __name__ == "__main__":
    main()

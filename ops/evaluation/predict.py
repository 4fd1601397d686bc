"""`predict`: what a run's student sees in photographs of any folder, preprocessed exactly as in its validation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.assembly import Assembly, assemble
from cluster.device_memory import refuse_full_gpu
from cluster.evaluation import load_student
from cluster.images import acceptance_of
from cluster.nodes.resources import rank_here, use_worker_threads
from cluster.passes import SMALLER_BATCH, every_image_once
from cluster.precision import autocast
from kdcore.errors import Refused
from kdcore.multi_label import THRESHOLD
from ops.console import console, percent, say, table
from ops.evaluation.subjects import find_student
from pipelines.data.broken import Acceptance
from pipelines.data.images import inspect_image
from pipelines.data.index import build_index
from pipelines.data.listing import HEIF_SUFFIXES, IMAGE_SUFFIXES
from pipelines.data.source import Source
from pipelines.files import make_folder, require_file_place, write_figure, write_json

SPLIT = "predicted"  # the name of the photographs within an `Assembly`
PICTURES = (".png", ".jpg", ".jpeg")
MAX_ROWS_SHOWN = 30  # rows of the table, and photographs of the picture


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a photograph, the likeliest first: [(class, probability)].

    multi_label: whether it may show several classes, or none: those whose own probability is at least `THRESHOLD` are
    named.
    """

    photo: Path
    classes: list[tuple[str, float]]
    multi_label: bool = False

    def as_plain(self) -> dict[str, Any]:
        """Return it as plain values for JSON."""
        classes = [{"class": name, "probability": p} for name, p in self.classes]
        named = {"named": [name for name, _ in self.named]} if self.multi_label else {}
        return {"photo": str(self.photo), **named, "classes": classes}

    @property
    def named(self) -> list[tuple[str, float]]:
        """The classes that are named for the photograph, with their probabilities."""
        return [(name, p) for name, p in self.classes if p >= THRESHOLD] if self.multi_label else self.classes[:1]

    def words(self) -> list[str]:
        """Return the likeliest classes with their probabilities; brackets mark those that are not named."""
        texts = [f"{name} {percent(p)}" for name, p in self.classes]
        num_named = len(self.named) if self.multi_label else len(texts)
        return [*texts[:num_named], *(f"({text})" for text in texts[num_named:])]


def predict(run: str, photos: str, top: int, output: str | None, picture: str | None, overrides: Sequence[str]) -> int:
    """Print the likeliest classes of a photograph, or of every one below a folder; write them to files if asked.

    output: path of a JSON file; picture: path of a grid of the photographs with their likeliest class.
    """
    subject, weights = find_student(run, overrides)
    if top < 1:
        raise Refused(f"--top {top}: at least one class a photograph")
    for option, place in (("--output", output), ("--picture", picture)):
        if place is not None:
            require_file_place(Path(place), option)
    if picture is not None and Path(picture).suffix.lower() not in PICTURES:
        raise Refused(f"--picture {picture}: give a name that ends in {' or '.join(PICTURES)}")
    # A photograph that breaks meanwhile is refused: if it were left out, the next would take its name.
    acceptance = replace(acceptance_of(subject.config), on_broken="refuse")
    found, broken = find_photos(Path(photos), acceptance)
    for reason in broken:
        say(f"left out: {reason}")
    if not found:
        raise Refused(f"{photos} holds no photograph that can be read; give a JPEG or PNG file, or a folder of them")
    use_worker_threads(subject.config)
    parts = assemble(subject.config, rank_here(subject.config))
    with tempfile.TemporaryDirectory() as folder:
        source = index_photos(found, Path(folder), parts, acceptance)
        predictions = [
            Prediction(found[number], classes, parts.config.data.multi_label)
            for number, classes in enumerate(likeliest(parts, weights, source, top))
        ]
    show(predictions, run)
    if output is not None:
        make_folder(Path(output).absolute().parent, "--output")
        write_json(Path(output), [one.as_plain() for one in predictions])
        say(f"written: {output}")
    if picture is not None:
        make_folder(Path(picture).absolute().parent, "--picture")
        draw(predictions[:MAX_ROWS_SHOWN], Path(picture))
        say(f"written: {picture}")
    return 0


def find_photos(path: Path, acceptance: Acceptance) -> tuple[list[Path], list[str]]:
    """Return the images at or below a path, sorted by name, and why others with an image's name are left out.

    Refused where there is no such file or folder.
    """
    if not path.exists():
        raise Refused(f"{path}: no such file or folder; give a photograph, or a folder of them")
    files = [path] if path.is_file() else _images_below(path)
    found, broken = [], []
    for file in files:
        try:
            inspect_image(file.read_bytes(), str(file), acceptance.max_pixels, acceptance.check == "decode")
        except Refused as error:
            broken.append(str(error))
        except OSError as error:
            broken.append(f"{file} cannot be read ({error.strerror or error}); make it readable, or fetch it again")
        else:
            found.append(file)
    return found, broken


def _images_below(folder: Path) -> list[Path]:
    suffixes = IMAGE_SUFFIXES | HEIF_SUFFIXES  # the latter are left out, which is said
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())


def index_photos(photos: Sequence[Path], folder: Path, parts: Assembly, acceptance: Acceptance) -> Source:
    """Return an index of the photographs, in this order, without labels and with the run's classes.

    An index is of a folder, so links to the photographs are made in one. A file's format is read from its content; but
    an index lists only files with an image's suffix, so the links have one.
    """
    staged = folder / "photos" / SPLIT
    staged.mkdir(parents=True)
    for number, photo in enumerate(photos):
        suffix = photo.suffix if photo.suffix.lower() in IMAGE_SUFFIXES else ".img"
        (staged / f"{number:08}{suffix}").symlink_to(photo.absolute())
    source = build_index(folder / "photos", SPLIT, folder / "index", acceptance=acceptance)
    return replace(source, classes=parts.classes, multi_label=parts.config.data.multi_label)


@torch.no_grad()
def likeliest(parts: Assembly, weights: Path, source: Source, top: int) -> Iterator[list[tuple[str, float]]]:
    """Yield for each image the `top` likeliest classes with their probabilities, and all others that are named."""
    config = parts.config
    if config.data.loader == "resident":  # wants images of one size; the reference shows the same pixels of any
        config = config.model_copy(update={"data": config.data.model_copy(update={"loader": "reference"})})
    parts = replace(parts, config=config, indexes={**parts.indexes, SPLIT: source})
    student, rank = load_student(parts, weights).to(parts.rank.device), parts.rank
    loader = parts.evaluation_loader(SPLIT)
    for batch in loader.load(every_image_once(len(source), rank, loader.max_batch)):
        with refuse_full_gpu(SMALLER_BATCH), autocast(parts.config, rank):
            logits: Tensor = student(batch.images)
        logits = logits.double()
        shares = logits.sigmoid() if config.data.multi_label else logits.softmax(dim=1)
        num_named = int((shares >= THRESHOLD).sum(dim=1).max()) if config.data.multi_label else 0
        best = shares.topk(min(max(top, num_named), len(parts.classes)), dim=1)
        for probabilities, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            rows = zip(numbers, probabilities, strict=True)
            yield [(parts.classes[n], p) for place, (n, p) in enumerate(rows) if place < top or p >= THRESHOLD]


def show(predictions: Sequence[Prediction], run: str) -> None:
    """Print a row for each of the first photographs."""
    base = os.path.commonpath([one.photo.absolute().parent for one in predictions])
    rows = [
        [
            os.path.relpath(one.photo.absolute(), base),
            *one.words(),
        ]
        for one in predictions[:MAX_ROWS_SHOWN]
    ]
    width = max(len(row) for row in rows)
    console.print(table(f"what {run} sees", ["photograph", *map(str, range(1, width))], rows))
    if len(predictions) > MAX_ROWS_SHOWN:
        say(f"and {len(predictions) - MAX_ROWS_SHOWN:,} more; --output FILE writes all of them")


def draw(predictions: Sequence[Prediction], path: Path) -> None:
    """Save a grid of the photographs with their likeliest class and its probability."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    columns = min(6, len(predictions))
    rows = -(-len(predictions) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.5 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, one in zip(axes.flat, predictions, strict=False):
        with Image.open(one.photo) as image:
            image.thumbnail((320, 320))
            axis.imshow(np.asarray(image.convert("RGB")))
        title = "\n".join(f"{name}\n{percent(p)}" for name, p in one.named[:1])
        if one.multi_label:
            title = "\n".join(f"{name} {percent(p)}" for name, p in one.named) or "none of the classes"
        axis.set_title(title, fontsize="small", parse_math=False)
    write_figure(path, figure, dpi=110)
    plt.close(figure)

"""The images of a run: its splits, indexed once, with one list of classes and the held-out slice; how they are cut."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.recipe.config import RunConfig
from kdcore.errors import Refused
from kdcore.remarks import warn_once
from pipelines.data.broken import Acceptance
from pipelines.data.classes import check_same_classes
from pipelines.data.copies import CopyPolicy
from pipelines.data.index import build_index, open_index
from pipelines.data.source import Source
from pipelines.files import make_folder
from pipelines.vectors import to_numpy
from pipelines.views.policy import ViewPolicy
from pipelines.views.sampling import POWERS, ClassSampling

_PIXELS = 128 * 224 * 224  # of a validation batch, at most
_MOST = 1024  # images of a validation batch
_MEMORY_PER_PIXEL = 2000  # bytes of a worker's memory: twice what the maps of a wide network take


def open_data(config: RunConfig, reuse_index: bool = False) -> dict[str, Source]:
    """Return the run's image indexes {train, val, held_out}; built at the first use, then read back.

    reuse_index: the driver has just listed the folders, which takes minutes where they are large; do not do it again.
    """
    data = config.data
    splits = {"train": data.train_split, "val": data.val_split}
    indexes = {name: open_split(config, data.root, split, reuse_index) for name, split in splits.items()}
    for source in indexes.values():
        check_label_kind(config, source)
    indexes = share_classes(indexes, data.root)
    _require_classes(indexes, config)
    if data.images_per_class is not None:
        indexes["train"] = indexes["train"].sample(data.images_per_class, config.plan_seed)
    if data.held_out:
        _say_classes_too_small(indexes["train"], data.held_out)
        indexes["train"], indexes["held_out"] = indexes["train"].split(data.held_out, config.plan_seed)
        _require_shown_classes(indexes["held_out"], data.held_out)
    return indexes


def image_facts(indexes: Mapping[str, Source]) -> dict[str, Any]:
    """Return what tells the images of a run from others: the fingerprints of those trained on, and of those judged on.

    Weights are chosen by scores, which only compare where they are of the same images.
    """
    judged = {split: source.fingerprint for split, source in indexes.items() if split != "train"}
    return {"data": indexes["train"].fingerprint, "validation": judged}


def open_split(config: RunConfig, root: str, split: str, reuse_index: bool = False) -> Source:
    """Return the index of a split at any place: the recipe says which images it accepts and what copies are kept.

    reuse_index: as for `open_data`.
    """
    data, cache_dir = config.data, Path(config.output_dir) / "index"
    copies = CopyPolicy(data.copies_dir, data.copies_bytes)
    acceptance = acceptance_of(config)
    if reuse_index:
        return open_index(root, split, cache_dir, copies, acceptance)
    for folder in (Path(config.output_dir), cache_dir):
        make_folder(folder, "output_dir")
    return build_index(root, split, cache_dir, acceptance=acceptance, copies=copies)


def acceptance_of(config: RunConfig) -> Acceptance:
    """Return which images a recipe accepts."""
    return Acceptance(config.data.on_broken, config.data.check, config.data.max_pixels)


def share_classes(indexes: dict[str, Source], root: str) -> dict[str, Source]:
    """Return the splits with one list of classes: those without labels take it from those with.

    Refused where they differ in their classes, or where none has labels.
    """
    named = next((source for source in indexes.values() if source.labelled), None)
    if named is None:
        raise Refused(f"no split of {root} has labels, so the classes are unknown; give one that has them")
    shared = {
        split: source if source.labelled else replace(source, classes=named.classes, multi_label=named.multi_label)
        for split, source in indexes.items()
    }
    check_same_classes(shared["train"], shared["val"])
    return shared


def evaluation_policy(config: RunConfig) -> ViewPolicy:
    """Return the view policy of validation: the centre, nothing random."""
    crop_pct = 1.0 if config.views.crop == "padded" else config.data.crop_pct
    size = config.data.evaluation_size or config.views.size
    return ViewPolicy.evaluation(size, crop_pct, config.data.evaluation_interpolation)


def deployed_size(config: RunConfig) -> tuple[int, int]:
    """Return the height and width at which the student is validated and deployed."""
    policy = evaluation_policy(config)
    return (policy.height, policy.width)


def evaluation_batch(config: RunConfig, device: torch.device) -> int:
    """Return the batch size of validation: `data.evaluation_batch`, or by image size and memory.

    Total memory counts, not free memory, so that a resumed run sums in the same order.
    """
    if config.data.evaluation_batch is not None:
        return config.data.evaluation_batch
    policy = evaluation_policy(config)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        memory = total // config.scaling.num_ranks
    pixels = min(_PIXELS, memory // _MEMORY_PER_PIXEL)
    return int(max(1, min(_MOST, pixels // (policy.height * policy.width))))


def _say_classes_too_small(train: Source, fraction: float) -> None:
    """Warn of classes of which the fraction is less than an image: `Source.split` takes one, none from a single one."""
    if not train.has_one_label:
        return
    counts = train.class_counts
    few, single = int(((np.rint(fraction * counts) < 1) | (counts < 2)).sum()), int((counts < 2).sum())
    if few:
        excepted = f", but none of the {single} that have fewer than two" if single else ""
        warn_once(
            f"data.held_out={fraction:g} is less than one image of {few} of the {len(counts)} classes: one image "
            f"of each is held out{excepted}"
        )


def _require_shown_classes(held_out: Source, fraction: float) -> None:
    """Refuse held-out images with several labels if none shows a class: mAP would be undefined."""
    if held_out.labelled and held_out.multi_label and not held_out.class_counts.any():
        raise Refused(
            f"data.held_out={fraction} keeps back {len(held_out)} images of {held_out.root}, none of which shows a "
            "class, so there is no mAP to choose by; keep back more"
        )


def _require_classes(indexes: dict[str, Source], config: RunConfig) -> None:
    """Refuse images from which nothing can be learnt, or by which no student can be judged."""
    train, val = indexes["train"], indexes["val"]
    if len(train.classes) == 1:
        raise Refused(
            f"{train.root} has one class, {train.classes[0]!r}: a classifier of one class is right before it has "
            "learnt anything; give images of at least two"
        )
    if train.labelled and not val.labelled:
        if config.teacher is None:
            raise Refused(
                f"the images of {val.root}/{config.data.val_split} have no labels, so that there is nothing to judge "
                f"the student by; sort them into the class folders that {config.data.train_split} has, as ILSVRC's "
                "50,000 have to be"
            )
        warn_once(
            f"the images of {val.root}/{config.data.val_split} have no labels, unlike those of "
            f"{config.data.train_split}: the student's agreement with the teacher is measured, and no accuracy"
        )


def check_label_kind(config: RunConfig, source: Source) -> None:
    """Refuse images with several labels that the recipe does not expect, and images with one label where it does."""
    if source.labelled and source.multi_label and not config.data.multi_label:
        raise Refused(
            f"the images in {source.root} have several labels each; set data.multi_label=true, with the terms bce and "
            "binary_kd in the method"
        )
    if source.labelled and config.data.multi_label and not source.multi_label:
        raise Refused(
            f"data.multi_label is true, but the images in {source.root} have one label each; give a CSV with a column "
            "labels (names with | between them) or Parquet with a column of lists, or leave data.multi_label out"
        )


def check_labels(config: RunConfig, train: Source) -> None:
    """Refuse a method that reads labels of training images that have none."""
    readers = [term.term for term in config.method if term.weight > 0 and term.needs().reads_labels]
    if readers and not train.labelled:
        raise Refused(
            f"the training images in {train.root} have no labels, which the term {readers[0]} reads; leave it out of "
            "the method (kd and the terms on features do without), or give images with labels"
        )


def check_apart(config: RunConfig, indexes: dict[str, Source]) -> None:
    """Refuse to judge a student by the images that it learns from, whatever their names; unlabelled ones may be both.

    Not in `open_data`: a finished run may be evaluated on its training images.
    """
    data, train, val = config.data, indexes["train"], indexes["val"]
    if not train.labelled:
        return
    learnt, judged = (to_numpy(source.table["crc32"]) for source in (train, val))
    if np.isin(judged, learnt).all() or np.isin(learnt, judged).all():  # of training images, a sample may be left
        splits = f"data.train_split={data.train_split} and data.val_split={data.val_split} of {train.root}"
        raise Refused(
            f"{splits} hold the same images, so that the student would be judged by what it has learnt; move part of "
            "each class out of the training images, and give these as data.val_split"
        )


def sampling_of(config: RunConfig, train: Source) -> ClassSampling | None:
    """Return how often the images of each class are shown; None: each once per epoch. Refused without labels."""
    if config.data.sampling == "images":
        return None
    train.require_one_label(f"data.sampling={config.data.sampling}")
    return ClassSampling(POWERS[config.data.sampling], train.labels)


def image_size(config: RunConfig) -> tuple[int, int]:
    """Return the height and width that the student is trained at."""
    return (config.views.height, config.views.width)

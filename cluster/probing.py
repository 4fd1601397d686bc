"""Networks without a common set of classes, judged by their frozen features: nearest neighbours and linear probes.

For teachers without a head, whose students cannot be compared with them by their answers, and for students whose
classifier nothing teaches. Not here: the measures (`kdcore.probing`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.assembly import Assembly
from cluster.device_memory import refuse_full_gpu
from cluster.images import image_size
from cluster.passes import SMALLER_BATCH
from cluster.recipe.config import RunConfig
from kdcore.batch import Batch
from kdcore.errors import Refused
from kdcore.layout import evaluating
from kdcore.models import brings_classifier
from kdcore.online_teacher import OnlineTeacher
from kdcore.probing import knn_logits, linear_probe_logits, neighbour_agreement, top1
from kdcore.protocol import find_classifier
from kdcore.quality.collect import class_balanced_sample
from kdcore.taps import CLASSIFIER_INPUT, FeatureTaps
from pipelines.loaders.base import Loader, requests_of

BANK_PER_CLASS = 100  # training images of each class among which neighbours are sought, and to which probes are fitted

Embedding = Callable[[Batch], Tensor]


def wants_probing(config: RunConfig, num_classes: int) -> bool:
    """Return whether features are what can be compared: of a teacher without a head, or where answers mean nothing."""
    return has_headless_teacher(config) or not classifier_knows_classes(config, num_classes)


def has_headless_teacher(config: RunConfig) -> bool:
    """Return whether a teacher of the recipe has no head."""
    return any(teacher.head == "none" for teacher in config.all_teachers)


def classifier_knows_classes(config: RunConfig, num_classes: int) -> bool:
    """Return whether the student's classifier knows the classes, so that its accuracy means something.

    A term teaches it, or it comes from the teacher, or with the student's weights. num_classes: of the data.
    """
    taught = any(term.teaches_classifier for term in config.method if term.weight > 0)
    return taught or config.student.classifier == "reused" or brings_classifier(config.student, num_classes)


class Probe:
    """A run's networks by their features: what their classifiers read, or the output of a teacher without one.

    of_any_teacher: also of a teacher that has a classifier, whose answers can be compared otherwise.
    The bank is the same images for every network: a class-balanced sample of the training images, cut as for
    validation; there is none where those have no labels. A teacher with its own image size sees them in that size.
    """

    def __init__(self, run: Assembly, splits: Sequence[str], of_any_teacher: bool = False) -> None:
        self.run, self.splits = run, splits
        train = run.indexes["train"]
        self.bank: NDArray[np.int64] | None = None
        if train.has_one_label:
            per_class = min(BANK_PER_CLASS, int(train.class_counts.min()))
            self.bank = class_balanced_sample(train.labels, per_class, run.plan.seed) if per_class else None
        self.loaders = self.loaders_of(run)
        self.teacher = probed_teacher(run, of_any_teacher)
        self.seen = self.loaders if run.for_teacher is run else self.loaders_of(run.for_teacher)
        self.theirs = {split: self.embed_by_teacher(split) for split in splits} if self.teacher else {}

    def loaders_of(self, run: Assembly) -> Mapping[str, Loader]:
        """Return {split: loader} of the bank's images and of the judged splits, in a run's image size."""
        return {split: run.evaluation_loader(split) for split in ("train", *self.splits)}

    def embed_by_teacher(self, split: str, ids: NDArray[np.int64] | None = None) -> Tensor:
        """Return the teacher's features of a split's images, or of some of them: [n,D]."""
        return self.embed(self.teacher_embedding, split, ids, self.seen)

    def teacher_embedding(self, batch: Batch) -> Tensor:
        """Return the input of the teacher's classifier, or, without a head, its output: [B,D]."""
        assert self.teacher is not None, "asked only where there is one"
        model, images = self.teacher.model, self.teacher.normalised(batch.images)
        found: Tensor = classifier_input(model, images) if self.teacher.has_head else model(images)
        return found

    def metrics(self, student: nn.Module, linear: bool = False) -> dict[str, float]:
        """Return {split/metric: value} of the student on every split. linear: with a probe, which takes longer."""
        found: dict[str, float] = {}

        def embedding(batch: Batch) -> Tensor:
            return classifier_input(student, batch.images)

        with evaluating(student):
            bank = None if self.bank is None else self.embed(embedding, "train", self.bank)
            for split in self.splits:
                ours = self.embed(embedding, split)
                found |= {f"{split}/{name}": value for name, value in self.judge(bank, ours, split, linear).items()}
                if split in self.theirs:
                    found[f"{split}/neighbour_agreement"] = neighbour_agreement(ours, self.theirs[split])
        return found

    def teacher_metrics(self, linear: bool = False) -> dict[str, dict[str, float]]:
        """Return {split: metrics} of the probed teacher; empty without one."""
        if self.teacher is None:
            return {}
        bank = None if self.bank is None else self.embed_by_teacher("train", self.bank)
        return {split: self.judge(bank, theirs, split, linear) for split, theirs in self.theirs.items()}

    def judge(self, bank: Tensor | None, features: Tensor, split: str, linear: bool) -> dict[str, float]:
        """Return the top-1 of neighbours, and of a probe, for features of a split; empty without labels."""
        source, train = self.run.indexes[split], self.run.indexes["train"]
        if bank is None or self.bank is None or not source.labelled:
            return {}
        known = torch.from_numpy(train.labels[self.bank].astype(np.int64)).to(bank.device)
        labels = torch.from_numpy(source.labels.astype(np.int64)).to(bank.device)
        number = len(train.classes)
        found = {"knn_top1": top1(knn_logits(bank, known, features, number), labels)}
        if linear:
            found["probe_top1"] = top1(linear_probe_logits(bank, known, features, number), labels)
        return found

    @refuse_full_gpu(SMALLER_BATCH)
    @torch.no_grad()
    def embed(
        self,
        embedding: Embedding,
        split: str,
        ids: NDArray[np.int64] | None = None,
        loaders: Mapping[str, Loader] | None = None,
    ) -> Tensor:
        """Return the features [n,D] of a split's images, or of some of them; the same on every rank.

        loaders: of the images in the size that the network sees; not given: the student's.
        """
        rank = self.run.rank
        ids = np.arange(len(self.run.indexes[split])) if ids is None else ids
        share, rows = rank.slice_of(len(ids)), []
        loader = (loaders or self.loaders)[split]
        for batch in loader.load(requests_of(ids[share.start : share.stop], loader.max_batch)):
            rows.append(embedding(batch).float())
        width = torch.tensor([rows[0].shape[1] if rows else 0], dtype=torch.float64, device=rank.device)
        count = torch.tensor([1.0 if rows else 0.0], dtype=torch.float64, device=rank.device)
        size = round(float(rank.add_up(width) / rank.add_up(count)))
        found = torch.zeros(len(ids), size, device=rank.device)
        if rows:
            found[share.start : share.stop] = torch.cat(rows)
        return rank.add_up(found)


def classifier_input(network: nn.Module, images: Tensor) -> Tensor:
    """Return the input of a network's classifier for images: [B,D]."""
    taps = FeatureTaps(network, [CLASSIFIER_INPUT])
    try:
        return taps(images)[1][CLASSIFIER_INPUT].flatten(1)
    finally:
        taps.remove()


def probed_teacher(run: Assembly, of_any: bool) -> OnlineTeacher | None:
    """Return the run's first teacher without a head that answers online; None where there is none.

    of_any: failing that, the first whose classifier's input can be read.
    """
    online = run.teachers.online.values()
    readable = [teacher for teacher in online if of_any and find_classifier(teacher.model) is not None]
    return next((teacher for teacher in online if not teacher.has_head), next(iter(readable), None))


def check_probing(run: Assembly) -> None:
    """Refuse a student that is judged by its features where these cannot be read."""
    if not wants_probing(run.config, len(run.classes)):
        return
    try:
        FeatureTaps(run.student, [CLASSIFIER_INPUT], role="student").shapes(image_size(run.config))
    except Refused as error:
        if has_headless_teacher(run.config):
            raise
        raise Refused(
            f"no term teaches the student's classifier, so that only its features could be judged, but {error}; add a "
            "term on the logits, such as ce"
        ) from error

"""Evaluating a run's student and teacher on a folder of images, by one process or by the workers of a Ray cluster.

Every worker takes a share of the images and needs no other worker: a lost one is replaced, and there may be more
workers than places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor, nn

from cluster.assembly import Assembly, assemble
from cluster.device_memory import refuse_full_gpu
from cluster.images import check_label_kind, open_data, open_split
from cluster.nodes.errors import failure_reason
from cluster.nodes.resources import device_of_worker, rank_here, ray_session, worker_resources
from cluster.nodes.waiting import Patience, remedy_for, wait_for_place, warn
from cluster.passes import SMALLER_BATCH, every_image_once
from cluster.precision import autocast
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.teachers.running import SINGLE
from kdcore.batch import Batch, Needs, TeacherOutputs
from kdcore.checkpoints import load_tensors
from kdcore.errors import Refused, RunFailed
from kdcore.evaluation import Evaluation, LinearCKA
from kdcore.fitting import load_fitting
from kdcore.multi_label import MultiLabelEvaluation
from kdcore.online_teacher import OnlineTeacher
from kdcore.protocol import find_classifier
from kdcore.taps import CLASSIFIER_INPUT, FeatureTaps
from pipelines.data.kinds import locate_split
from pipelines.data.variants import Target, open_target, own_target

Network = Callable[[Batch], TeacherOutputs]
SPLIT = "evaluated"  # the name of the images within an `Assembly`


@dataclass
class Findings:
    """The evaluations of both networks; cka: of taps named 'student <tap>' and 'teacher <tap>'."""

    student: Evaluation | MultiLabelEvaluation | None
    teacher: Evaluation | MultiLabelEvaluation | None
    cka: LinearCKA
    images: int = 0

    @classmethod
    def of(cls, target: Target, rank: Rank, student: bool, teacher: bool) -> Findings:
        """Return empty findings for the networks that there are."""
        kind = MultiLabelEvaluation if target.multi_label else Evaluation
        ours, theirs = (kind(len(target.classes), rank.device) if there else None for there in (student, teacher))
        return cls(ours, theirs, LinearCKA())

    def add(self, ours: TeacherOutputs, theirs: TeacherOutputs, answers: Tensor) -> None:
        """Add one batch's outputs of student and teacher; answers [B,M] as in `Evaluation.add`."""
        self.images += len(answers)
        if self.student is not None and ours.logits is not None:
            self.student.add(ours.logits, answers, theirs.logits)
        if self.teacher is not None and theirs.logits is not None:
            self.teacher.add(theirs.logits, answers)
        if ours.features and theirs.features:
            sides = {"student": ours.features, "teacher": theirs.features}
            self.cka.add({f"{side} {tap}": of[tap] for side, of in sides.items() for tap in sorted(of)})

    def merge(self, other: Findings) -> None:
        """Add another worker's findings."""
        for mine, its in ((self.student, other.student), (self.teacher, other.teacher)):
            if mine is not None and its is not None:
                mine.merge(its)  # type: ignore[arg-type]  # both of the target's kind
        self.cka.merge(other.cka)
        self.images += other.images

    def to(self, device: str) -> Findings:
        """Move the sums to a device; return self."""
        for one in (self.student, self.teacher):
            if one is not None:
                one.to(device)
        self.cka.to(device)
        return self


def evaluate_networks(config: RunConfig, weights: Path | None, target: Target) -> Findings:
    """Evaluate both networks on every image once. weights: of the student; None: only the teacher is evaluated.

    On the Ray cluster if scaling.num_workers is above 1, else in this process.
    """
    if config.scaling.num_workers <= 1:
        findings = evaluate_share(config, weights, target, rank_here(config))
    else:
        with ray_session(config):
            findings = gather(config, weights, target)
    assert findings.images == len(target.index), "every image once"
    return findings


def gather(config: RunConfig, weights: Path | None, target: Target) -> Findings:
    """Return the merged findings of all workers."""
    scaling, takes = config.scaling, worker_resources(config)
    wait_for_place(takes, Patience(scaling.patience_seconds, warn, remedy_for(1, None)))
    share = ray.remote(num_cpus=takes["CPU"], num_gpus=takes["GPU"])(share_of_worker)
    payload, target = ray.put(config.model_dump(mode="json")), ray.put(target)
    shares = [share.remote(payload, weights, target, n, scaling.num_workers) for n in range(scaling.num_workers)]
    try:
        first, *others = ray.get(shares)
    except RayError as error:
        raise RunFailed(failure_reason(error)) from error
    for other in others:
        first.merge(other)
    return first


def share_of_worker(
    payload: dict[str, Any], weights: Path | None, target: Target, number: int, world_size: int
) -> Findings:
    """Evaluate one share of the images, in a Ray worker."""
    rank = Rank(number, world_size, device_of_worker())
    return evaluate_share(parse(payload), weights, target, rank).to("cpu")


@refuse_full_gpu(SMALLER_BATCH)
@torch.no_grad()
def evaluate_share(config: RunConfig, weights: Path | None, target: Target, rank: Rank) -> Findings:
    """Evaluate both networks on this rank's share of the images."""
    parts = assemble(config, replace(rank, world_size=1), reuse_index=True)
    parts = replace(parts, indexes={**parts.indexes, SPLIT: target.index})
    student, teacher = student_of(parts, weights), teacher_of(parts, target)
    findings = Findings.of(target, rank, student is not None, answers_with_logits(teacher))
    loader = parts.evaluation_loader_of_both(SPLIT)
    for batch in loader.load(every_image_once(len(target.index), rank, loader.max_batch)):
        answers = torch.from_numpy(target.answers[batch.sample_ids.cpu().numpy()]).to(rank.device)
        with autocast(config, rank):
            theirs = teacher(batch) if teacher else TeacherOutputs()
            ours = student(batch) if student else TeacherOutputs()
        findings.add(restrict_classes(ours, target), restrict_classes(theirs, target), answers)
    return findings


def answers_with_logits(teacher: Network | None) -> bool:
    """Return whether there is a teacher with a head."""
    return teacher is not None and bool(getattr(teacher, "has_head", True))


def restrict_classes(outputs: TeacherOutputs, target: Target) -> TeacherOutputs:
    """Return the outputs with only the logits of the classes that may be answered."""
    if outputs.logits is None or target.shown is None:
        return outputs
    return replace(outputs, logits=outputs.logits[:, torch.from_numpy(target.shown)])


def student_of(parts: Assembly, weights: Path | None) -> Network | None:
    """Return the student with the given weights and its taps; None without weights."""
    if weights is None:
        return None
    student = load_student(parts, weights)
    taps = FeatureTaps(student, taps_of(student, parts.config.needs.student_taps))

    def answer(batch: Batch) -> TeacherOutputs:
        logits, features = taps(batch.images)
        return TeacherOutputs(logits=logits, features=features)

    return answer


def load_student(parts: Assembly, weights: Path) -> nn.Module:
    """Load the given weights into the recipe's student. Refused where they do not fit."""
    name = f"the student {parts.config.student.model} of the recipe"
    load_fitting(parts.student, load_tensors(weights), weights, name)
    return parts.student.eval()


def teacher_of(parts: Assembly, target: Target) -> Network | None:
    """Return the teacher with its taps; if cached, or of several, its logits or those of their average.

    None where one is in a cache that does not hold these images.
    """
    if SINGLE in parts.teachers.online:
        asked, needs = parts.teachers.single, parts.config.needs
        taps = taps_of(asked.model, needs.teacher_taps)
        return OnlineTeacher(asked.model, Needs(teacher_logits=True, teacher_taps=taps), asked.renormalise)
    kept = {name: one for name, one in parts.teachers.stored.items() if one.has_head}
    online = {name: one for name, one in parts.teachers.online.items() if one.has_head}
    if not (kept or online) or (kept and target.index.fingerprint != parts.indexes["val"].fingerprint):
        return None

    def answer(batch: Batch) -> TeacherOutputs:
        ids = batch.sample_ids.cpu().numpy()
        answers = {name: one(batch).logits for name, one in online.items()}
        answers |= {name: one.evaluations["val"].outputs(0, ids).logits for name, one in kept.items()}
        known = {name: logits for name, logits in answers.items() if logits is not None}
        judged = parts.teachers.judged
        return TeacherOutputs(logits=judged.logits(known, epoch=0.0) if judged else known[SINGLE])

    return answer


def taps_of(network: nn.Module, taps: frozenset[str]) -> frozenset[str]:
    """Return the method's taps, and the classifier's input of a network that has one."""
    return taps | {CLASSIFIER_INPUT} if find_classifier(network) is not None else taps


def find_target(config: RunConfig, location: str | None, variant: str | None) -> Target:
    """Return the images to evaluate on: the recipe's validation split, or another place's (or that place itself)."""
    indexes = open_data(config)
    if location is None and variant is None:
        return own_target(indexes["val"])
    if variant is not None and config.data.multi_label:
        raise Refused(f"--variant {variant} is of images with one right class; leave it out for data.multi_label")
    root, split = locate_split(location or config.data.root, config.data.val_split)
    target = open_target(open_split(config, root, split), root, variant, indexes["train"].classes)
    check_label_kind(config, target.index)
    return target


def with_online_teacher(config: RunConfig) -> RunConfig:
    """Return the recipe with its teachers online where it has their weights: only online ones can see other images.

    One of several with an image size of its own stays in its cache.
    """
    if config.teachers:
        members = (
            m.model_copy(update={"source": "online"}) if m.has_weights and m.image_size is None else m
            for m in config.teachers
        )
        return config.model_copy(update={"teachers": tuple(members)})
    if config.teacher is None or not config.teacher.has_weights:
        return config
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"source": "online"})})

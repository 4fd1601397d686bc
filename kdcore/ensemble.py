"""Several teachers as one: their answers averaged for most terms, or read singly by terms that name a teacher.

    logits         z = sum_i w_i z_i
    probabilities  z = log sum_i w_i softmax(z_i)      so that softmax(z) is the mean of the distributions

The weights w_i add up to 1. `fixed`: they are the same for every image, and follow their schedule over the epochs.
`confidence`: for each image they are first multiplied by exp(-H_i), with H_i the entropy in nats of teacher i's answer
at temperature 1, so that a teacher which spreads its answer evenly over twice as many classes counts half as much.

The average is taken when a batch is trained on, whether the answers are computed online or come from caches: so weights
may be changed without asking any teacher again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from kdcore.batch import Batch, TeacherOutputs
from kdcore.errors import Refused

if TYPE_CHECKING:  # code that only reads a recipe does not wait for the networks' libraries
    from kdcore.online_teacher import OnlineTeacher

Average = Literal["logits", "probabilities"]
Weighting = Literal["fixed", "confidence"]


@dataclass(frozen=True)
class Combination:
    """How answers are averaged. weights: {teacher: its weight as a function of the epoch}, not all 0."""

    weights: Mapping[str, Callable[[float], float]]
    average: Average = "logits"
    weighting: Weighting = "fixed"

    def logits(self, answers: Mapping[str, Tensor], epoch: float) -> Tensor:
        """Return the average of the teachers' logits [B,K], in float32; for one teacher, its own."""
        names = [name for name in self.weights if name in answers]
        stacked = torch.stack([answers[name].float() for name in names])
        fixed = torch.tensor([self.weights[name](epoch) for name in names], device=stacked.device)
        weights = fixed.log()[:, None].expand(stacked.shape[:2])
        log_probabilities = stacked.log_softmax(dim=2)
        if self.weighting == "confidence":
            weights = weights + (log_probabilities.exp() * log_probabilities).sum(dim=2)
        weights = weights.softmax(dim=0)[:, :, None]
        if self.average == "probabilities":
            return (weights.log() + log_probabilities).logsumexp(dim=0)
        return (weights * stacked).sum(dim=0)


class Ensemble:
    """Teachers that answer together, in place of an `OnlineTeacher`.

    online: those that run alongside the student; the answers of all others come with the batch, as
    `TeacherOutputs.members`. averages: whether the average of their logits is read at all. shapes: {teacher: {tap:
    shape of its features without the batch}}.
    """

    def __init__(
        self,
        online: Mapping[str, OnlineTeacher],
        combination: Combination,
        averages: bool,
        shapes: Mapping[str, Mapping[str, torch.Size]],
    ) -> None:
        self.online, self.combination, self.averages, self.shapes = online, combination, averages, shapes

    def __call__(self, batch: Batch) -> TeacherOutputs:
        stored = batch.targets.members if batch.targets else {}
        asked = {name: teacher(batch) for name, teacher in self.online.items() if name not in stored}
        members = {**stored, **asked}
        logits = None
        if self.averages:
            if batch.epoch is None:
                raise Refused(
                    "several teachers' weights go by the epoch, and the batch has none; give Batch(epoch=...)"
                )
            known = {name: answer.logits for name, answer in members.items() if answer.logits is not None}
            logits = self.combination.logits(known, batch.epoch)
        return TeacherOutputs(logits=logits, members=members)

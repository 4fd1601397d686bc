"""Several teachers at work: those that answer online, and those whose answers are read from their caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from cluster.config import RunConfig
from cluster.passes import teacher_pass
from cluster.rank import Rank
from cluster.scores import counts_for, over_ranks
from cluster.stored_teacher import StoredTeacher
from cluster.teachers import MemberConfig
from kdcore.batch import TeacherOutputs
from kdcore.ensemble import Combination, Ensemble
from kdcore.online_teacher import OnlineTeacher
from pipelines.data.source import Source
from pipelines.loaders.base import Loader, Request


@dataclass(frozen=True)
class TeacherEnsemble:
    """The teachers of a recipe by name, each either online or stored; combined: as terms read them.

    judged: their average in validation, by constant weights instead of their course over the epochs.
    """

    online: Mapping[str, OnlineTeacher]
    stored: Mapping[str, StoredTeacher]
    combined: Ensemble
    judged: Combination

    @classmethod
    def of(
        cls,
        config: RunConfig,
        online: Mapping[str, OnlineTeacher],
        stored: Mapping[str, StoredTeacher],
        image_size: tuple[int, int],
    ) -> TeacherEnsemble:
        """Put the teachers together as the recipe says."""
        parts = [member for member in config.read_teachers if member.weight > 0 and member.head == "own"]
        options = (config.ensemble.average, config.ensemble.weighting)
        weights = {m.name: partial(_weight_at, m, num_epochs=config.train.epochs) for m in parts}
        constant: dict[str, Callable[[float], float]] = {m.name: partial(_weight, m.weight) for m in parts}
        shapes = {name: teacher.taps.shapes(image_size) for name, teacher in online.items()}
        shapes |= {name: teacher.shapes for name, teacher in stored.items()}
        terms = [term for term in config.method if term.weight > 0 and term.teacher is None]
        averages = any(term.needs().teacher_logits for term in terms)
        combined = Ensemble(online, Combination(weights, *options), averages, shapes)
        return cls(online, stored, combined, Combination(constant, *options))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks of the teachers that answer online."""
        return [teacher.model for teacher in self.online.values()]

    def targets(self, request: Request) -> TeacherOutputs:
        """Return the stored answers for a request of training views; the other teachers are asked with the batch."""
        return TeacherOutputs(members={name: teacher.outputs(request) for name, teacher in self.stored.items()})

    def evaluation(
        self, split: str, source: Source, loader: Loader, rank: Rank
    ) -> tuple[dict[str, float], Tensor] | None:
        """Evaluate the average as `teacher_pass` does, with each teacher's top-1 as NAME_top1 (or mAP as NAME_mAP).

        None where no teacher has a head.
        """
        stored = {name: one for name, one in self.stored.items() if one.has_head}
        online = {name: one for name, one in self.online.items() if one.has_head}
        answers = {name: one.evaluation(split, source, rank) for name, one in stored.items()}
        answers |= {name: teacher_pass(one, loader, len(source), rank) for name, one in online.items()}
        if not self.judged.weights.keys() & answers.keys():
            return None
        rate = "mAP" if source.multi_label else "top1"
        each = {f"{name}_{rate}": m[rate] for name, (m, _) in sorted(answers.items()) if rate in m}
        share = rank.slice_of(len(source))
        counts, logits = counts_for(source, rank.device), torch.empty(0)
        if len(share):
            logits = self.judged.logits({name: answer for name, (_, answer) in answers.items()}, epoch=0.0)
            labels = torch.from_numpy(source.targets(np.arange(share.start, share.stop)))
            counts.add(logits.to(rank.device), labels.to(rank.device))  # the answers lie in host memory
        return {**over_ranks(counts, len(source), rank), **each}, logits


def _weight(weight: float, epoch: float) -> float:
    return weight


def _weight_at(member: MemberConfig, epoch: float, num_epochs: float) -> float:
    return member.weight_at(epoch, num_epochs)

"""The teachers of a run at work: none, one or several, which answer online or from their caches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from cluster.images import image_size
from cluster.passes import teacher_pass
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.recipe.teacher_sections import MemberConfig
from cluster.scores import counts_for, over_ranks
from cluster.teachers.stored import StoredTeacher
from kdcore.batch import ClassStatistics, TeacherOutputs
from kdcore.ensemble import Combination, Ensemble
from kdcore.online_teacher import OnlineTeacher
from pipelines.data.source import Source
from pipelines.loaders.base import Loader, Request

SINGLE = ""  # the name of a recipe's `teacher`; those of its `teachers` have one


@dataclass(frozen=True)
class RunTeachers:
    """The teachers of a run by name, in the recipe's order; a single one is called SINGLE, and there may be none.

    combined: several, as terms read them; judged: their average in validation, by constant weights instead of their
    course over the epochs.
    """

    members: Mapping[str, OnlineTeacher | StoredTeacher] = field(default_factory=dict)
    combined: Ensemble | None = None
    judged: Combination | None = None

    @classmethod
    def of(cls, config: RunConfig, teachers: Sequence[OnlineTeacher | StoredTeacher]) -> RunTeachers:
        """Put the teachers of `config.teacher_recipes`, in that order, together as the recipe says."""
        if not config.teachers:
            return cls({SINGLE: teachers[0]} if teachers else {})
        named = {member.name: one for member, one in zip(config.read_teachers, teachers, strict=True)}
        parts = [member for member in config.read_teachers if member.weight > 0 and member.head == "own"]
        options = (config.ensemble.average, config.ensemble.weighting)
        weights = {m.name: partial(_weight_at, m, num_epochs=config.train.epochs) for m in parts}
        constant: dict[str, Callable[[float], float]] = {m.name: partial(_weight, m.weight) for m in parts}
        online = {name: one for name, one in named.items() if isinstance(one, OnlineTeacher)}
        shapes = {name: _shapes(one, image_size(config)) for name, one in named.items()}
        terms = [term for term in config.method if term.weight > 0 and term.teacher is None]
        averages = any(term.needs().teacher_logits for term in terms)
        combined = Ensemble(online, Combination(weights, *options), averages, shapes)
        return cls(named, combined, Combination(constant, *options))

    @cached_property
    def online(self) -> dict[str, OnlineTeacher]:
        """Those that answer online."""
        return {name: one for name, one in self.members.items() if isinstance(one, OnlineTeacher)}

    @cached_property
    def stored(self) -> dict[str, StoredTeacher]:
        """Those whose answers are read from a cache."""
        return {name: one for name, one in self.members.items() if isinstance(one, StoredTeacher)}

    @property
    def asked(self) -> OnlineTeacher | Ensemble | None:
        """Whom a batch is shown to: the single teacher, or several as one; None where there is none, or one stored."""
        return self.combined or self.online.get(SINGLE)

    @property
    def single(self) -> OnlineTeacher:
        """The teacher of a recipe with a single one, online."""
        return self.online[SINGLE]

    def shapes(self, image_size: tuple[int, int]) -> dict[str, torch.Size] | None:
        """Return {tap: shape of its features without the batch} of a single teacher, for images of a size."""
        return _shapes(self.members[SINGLE], image_size) if SINGLE in self.members else None

    def class_statistics(self, of: Callable[[OnlineTeacher], ClassStatistics]) -> dict[str | None, ClassStatistics]:
        """Return {teacher as terms name it: its class statistics}. of: gives those of a teacher that answers online.

        Terms that name no teacher read a single one's: it is under None.
        """
        found = {name: one.class_statistics for name, one in self.stored.items()}
        found |= {name: of(one) for name, one in self.online.items()}
        return {None if name == SINGLE else name: statistics for name, statistics in found.items()}

    def targets(self, request: Request) -> TeacherOutputs | None:
        """Return the stored answers for a request of training views; the other teachers are asked with the batch.

        None for a single teacher that answers online, and without any.
        """
        answers = {name: one.outputs(request) for name, one in self.stored.items()}
        return TeacherOutputs(members=answers) if self.combined else answers.get(SINGLE)

    def evaluation(
        self, split: str, source: Source, loader: Loader, rank: Rank
    ) -> tuple[dict[str, float], Tensor] | None:
        """Return the teacher's metrics on a split and its logits on this rank's share [n,K], as `teacher_pass` does.

        Of several, the average's, with each teacher's top-1 as NAME_top1 (or mAP as NAME_mAP). None without a head.
        """
        stored = {name: one for name, one in self.stored.items() if one.has_head}
        online = {name: one for name, one in self.online.items() if one.has_head}
        answers = {name: one.evaluation(split, source, rank) for name, one in stored.items()}
        answers |= {name: teacher_pass(one, loader, len(source), rank) for name, one in online.items()}
        if self.judged is None:
            return answers.get(SINGLE)
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


def _shapes(teacher: OnlineTeacher | StoredTeacher, image_size: tuple[int, int]) -> dict[str, torch.Size]:
    return teacher.shapes if isinstance(teacher, StoredTeacher) else teacher.taps.shapes(image_size)


def _weight(weight: float, epoch: float) -> float:
    return weight


def _weight_at(member: MemberConfig, epoch: float, num_epochs: float) -> float:
    return member.weight_at(epoch, num_epochs)

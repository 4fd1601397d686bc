"""The distiller: a student, its taps, and the weighted terms of a method; one forward pass gives one loss.

Not here: the outputs of a teacher that runs alongside it (`kdcore.online_teacher`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kdcore.batch import Batch, ClassStatistics, Needs, TeacherOutputs
from kdcore.errors import Refused, one_line
from kdcore.online_teacher import OnlineTeacher, input_gradient
from kdcore.protocol import require_logits
from kdcore.taps import FeatureTaps
from kdcore.terms import Term, TermContext, TermInputs
from kdcore.terms.base import SteppedModule, tap_askers, unique_names
from kdcore.terms.foreign import check_weights, complaints_of, is_foreign, refusal_of_foreign

LOGITS = Needs(teacher_logits=True)


class Teachers(Protocol):
    """Several teachers in place of one, such as `kdcore.ensemble.Ensemble`."""

    shapes: Mapping[str, Mapping[str, torch.Size]]

    def __call__(self, batch: Batch) -> TeacherOutputs:
        """Return the average of their answers, and the answers themselves."""


@dataclass(frozen=True)
class StepOutput:
    """The result of one forward pass.

    loss: the mean over the micro-batch of the weighted terms, with its graph; terms: {name: un-weighted mean},
    detached; student_logits, teacher_logits [B,K], detached.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    student_logits: Tensor
    teacher_logits: Tensor | None


def require_an_input_gradient(needs: Needs) -> None:
    """Refuse a method that reads the gradient at the student's input and cuts the graph on the way to it."""
    if needs.student_input_gradient and needs.detach_head_at:
        raise Refused(
            "the method has a term on the student's input gradient and one that detaches its head, which leaves no "
            "such gradient; drop one of the two (kdiga and feature_only, say)"
        )


class Distiller(nn.Module):
    """Trains `student` by the `terms`.

    The modules of terms with weights are kept in `extras`, outside the student, so that they are trained and
    checkpointed but never exported. The teacher is not a submodule: `train()`, `to()`, `state_dict()` and a
    data-parallel wrapper do not reach it. It is asked only if a batch does not already bring its targets. Terms of
    weight 0 are left out, with all that they need. num_epochs: of the whole run, for weights that decay to its end. The
    other arguments are what a term may know when it is built: see `TermContext`. statistics: {teacher as terms name it:
    its class means and similarity}, under None those of a single one.

    Refused for a method without terms, and for a tap or a shape that does not fit.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        *,
        image_size: tuple[int, int],
        num_samples: int,
        teacher: OnlineTeacher | Teachers | None = None,
        teacher_shapes: dict[str, torch.Size] | None = None,
        classes: tuple[str, ...] = (),
        statistics: Mapping[str | None, ClassStatistics] | None = None,
        sample_labels: Tensor | None = None,
        class_counts: Tensor | None = None,
        num_epochs: float | None = None,
        seed: int = 0,
        num_views: int | None = None,
    ) -> None:
        super().__init__()
        self.terms = unique_names(terms)
        if not self.terms:
            raise Refused("the method has no term with a weight above 0, so nothing would be learnt; add one")
        self.num_epochs = num_epochs
        for name, term in self.terms.items():
            term.check_epochs(num_epochs)
            check_weights(name, term, num_epochs)
        self.needs = Needs.union(term.needs() for term in self.terms.values())
        require_an_input_gradient(self.needs)
        self.student = student
        self.taps = FeatureTaps(
            student,
            self.needs.student_taps,
            self.needs.detach_head_at,
            role="student",
            asked_by=tap_askers(self.terms, "student"),
        )
        self._teacher = (teacher,)  # in a tuple, hidden from nn.Module's registration
        if isinstance(teacher, OnlineTeacher) and teacher_shapes is None:
            teacher_shapes = teacher.taps.shapes(image_size)
        self.student_shapes = self.taps.shapes(image_size)
        self.teacher_shapes: dict[str | None, Mapping[str, torch.Size]] = {None: teacher_shapes or {}}
        if teacher is not None and not isinstance(teacher, OnlineTeacher):
            self.teacher_shapes.update(teacher.shapes)
        self._statistics = statistics or {}
        self._check_teachers()
        context = TermContext(
            student_shapes=self.student_shapes,
            teacher_shapes=self.teacher_shapes[None],
            num_classes=int(student.num_classes),  # type: ignore[arg-type]
            num_samples=num_samples,
            classes=classes,
            sample_labels=sample_labels,
            class_counts=class_counts,
            compared=getattr(student, "compared", None),
            seed=seed,
            num_views=num_views,
        )
        self.extras = nn.ModuleDict({name: self._build(name, context) for name in self.terms})

    def _build(self, name: str, context: TermContext) -> nn.Module:
        """Build a term's module. Refused, with the taps and their shapes, if it cannot read them."""
        term = self.terms[name]
        found = self._statistics.get(term.teacher, ClassStatistics())
        context = replace(
            context,
            teacher_shapes=self.teacher_shapes[term.teacher],
            class_means=found.means,
            class_similarity=found.similarity,
        )
        try:
            return term.build(context)
        except torch.OutOfMemoryError:
            raise
        except complaints_of(term) as error:
            raise self.refusal(name, error) from error

    def refusal(self, name: str, error: Exception) -> Refused:
        """Return the refusal of a term that raised `error`, with its taps and, unless the error has one, a remedy."""
        if isinstance(error, Refused):
            return Refused(f"{self.describe_term(name)}: {error}")
        if is_foreign(type(self.terms[name])):
            return refusal_of_foreign(self.describe_term(name), self.terms[name], error)
        return Refused(f"{self.describe_term(name)}: {one_line(error)}; choose taps that fit, or another term")

    def _check_teachers(self) -> None:
        """Refuse terms that name an unknown teacher, or read an output that is not averaged over several."""
        for name, term in self.terms.items():
            if term.teacher not in self.teacher_shapes:
                known = ", ".join(sorted(other for other in self.teacher_shapes if other))
                raise Refused(
                    f"term {name}: no teacher is called {term.teacher!r}"
                    + (f"; the teachers are {known}" if known else "; leave out `teacher`, as there is only one")
                )
            theirs = term.needs().of_teacher
            if term.teacher is None and len(self.teacher_shapes) > 1 and theirs not in (Needs(), LOGITS):
                raise Refused(
                    f"term {name} reads more than logits, and only logits are averaged over teachers; name one: "
                    f"teacher: {next(other for other in self.teacher_shapes if other)}"
                )

    def describe_term(self, name: str) -> str:
        """Name a term with the taps it reads: 'feature_mse (student layer4: map [64,8,8]; teacher norm: ...)'."""
        needs, theirs = self.terms[name].needs(), self.teacher_shapes.get(self.terms[name].teacher, {})
        read = {"student": (needs.student_taps, self.student_shapes), "teacher": (needs.teacher_taps, theirs)}
        taps = [
            f"{side} {tap}: {describe_shape(shapes[tap])}"
            for side, (names, shapes) in read.items()
            for tap in sorted(names & shapes.keys())
        ]
        return f"term {name}" + (f" ({'; '.join(taps)})" if taps else "")

    @property
    def teacher(self) -> OnlineTeacher | Teachers | None:
        return self._teacher[0]

    def no_weight_decay(self) -> set[str]:
        """Name the student's own parameters that are exempt from weight decay, such as a ViT's position embedding.

        timm's optimiser factory asks a network for them.
        """
        return {
            f"{path}.{name}"
            for path, module in self.student.named_modules(prefix="student")
            if hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()
        }

    @property
    def group_matcher(self) -> Callable[..., Callable[[str], tuple[int]]]:
        """The depth of each parameter, which timm asks a network for if the rate falls by layer (`layer_decay`).

        The student's parameters have the same depth as in the student itself, those of terms the depth of its last
        layer. Absent (AttributeError) if the student has no group_matcher.
        """
        if not hasattr(self.student, "group_matcher"):
            raise AttributeError(f"{type(self.student).__name__} has no group_matcher")
        matcher = self.student.group_matcher
        depths = group_parameters(self.student, matcher(coarse=False), reverse=True)  # type: ignore[operator]
        last = max(depths.values())
        return lambda coarse=False: lambda name: (depths.get(name.removeprefix("student."), last),)

    def forward(self, batch: Batch) -> StepOutput:
        """Compute the loss of one micro-batch; ask the teacher, without gradient, if the batch brings no targets."""
        if self.needs.hard_labels and batch.labels.ndim != 1:
            hard = [name for name, term in self.terms.items() if term.needs().hard_labels]
            raise Refused(f"{', '.join(hard)} has no meaning for mixed labels; turn mixing off")
        epoch = self._epoch_of(batch)
        targets = self.targets(batch)
        images = batch.images
        if self.needs.student_input_gradient:
            images = images.detach().requires_grad_(True)
        # Fused attention has no second derivative, which a term on input gradients needs.
        with sdpa_kernel(SDPBackend.MATH) if self.needs.student_input_gradient else nullcontext():
            student_logits, features = self.taps(images)
        require_logits(self.student, student_logits, in_training=True)
        inputs = TermInputs(
            labels=batch.labels,
            student_logits=student_logits,
            student_features=features,
            teacher=targets or TeacherOutputs(),
            sample_ids=batch.sample_ids,
            views=batch.views,
            epoch=epoch,
            student_input_gradient=input_gradient(student_logits, batch.labels, images, create_graph=True)
            if self.needs.student_input_gradient
            else None,
        )
        values = {name: module(self._read_by(name, inputs)) for name, module in self.extras.items()}
        weights = {name: term.weight_at(epoch, self.num_epochs) for name, term in self.terms.items()}
        total = torch.stack([weights[name] * value for name, value in values.items()]).sum(0)
        return StepOutput(
            loss=total.mean(),
            terms={name: value.detach().mean() for name, value in values.items()},
            student_logits=student_logits.detach(),
            teacher_logits=None if targets is None else targets.logits,
        )

    def _epoch_of(self, batch: Batch) -> float:
        """Return the epochs done before a batch; 0 where it does not say, and nothing goes by them."""
        if batch.epoch is None and (waiting := [name for name, term in self.terms.items() if term.goes_by_epoch]):
            raise Refused(
                f"{', '.join(waiting)} goes by the epoch, by its weight or by what it computes, and the batch has "
                "none; give Batch(epoch=...), the epochs done before this step"
            )
        return batch.epoch or 0.0

    def end_step(self) -> None:
        """Let terms do what they do once a step; the training loop calls it on every rank, after the optimiser."""
        for module in self._stepped:
            module.end_step()

    def drop_step(self) -> None:
        """Let terms forget a skipped step; called instead of `end_step`, once the buffers are restored."""
        for module in self._stepped:
            module.drop_step()

    @property
    def _stepped(self) -> list[SteppedModule]:
        return [module for module in self.extras.values() if isinstance(module, SteppedModule)]

    def _read_by(self, name: str, inputs: TermInputs) -> TermInputs:
        """Return a term's inputs: with several teachers, the answers of the one it names, or their average."""
        teacher = self.terms[name].teacher
        return inputs if teacher is None else replace(inputs, teacher=inputs.teacher.members[teacher])

    def targets(self, batch: Batch) -> TeacherOutputs | None:
        """Return the targets that the batch brings, else the teacher's answer; None if the method needs no teacher.

        Of several teachers, those whose answers the batch lacks are asked.
        """
        if self.teacher is not None and not isinstance(self.teacher, OnlineTeacher) and self.needs.reads_teacher:
            return self.teacher(batch)
        if batch.targets is not None or not self.needs.reads_teacher:
            return batch.targets
        if self.teacher is None:
            raise Refused("the method needs a teacher's outputs, but there is neither a teacher nor a cache")
        return self.teacher(batch)


def describe_shape(shape: Sequence[int]) -> str:
    """Name the kind of a tap's features by their shape without the batch: 'map [C,H,W]', 'tokens [N,D]', ..."""
    kind = {1: "vector", 2: "tokens", 3: "map"}.get(len(shape), "tensor")
    return f"{kind} [{','.join(map(str, shape))}]"

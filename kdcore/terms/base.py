"""What a term is: a weighted loss, as data.

A method is a list of terms in a recipe; a term is a frozen, strict pydantic model whose fields are its
hyper-parameters. It declares what it reads (`needs`) and gives one value per sample (`loss`). A term with weights of
its own overrides `build` and returns a module. Defining a subclass registers it under the default of its `term` field;
every module of this package is imported by `kdcore.terms`, so that a new loss touches one file.

Data-parallel training: a term sees one micro-batch of a size fixed by the recipe, whatever the number of workers
(smaller where an epoch's last batch is kept: the mean is over the images it has). A batch-coupled term (SP, RKD, PKT,
DIST, ...) is therefore computed over a fixed reference batch, and gives the same value on one rank or on many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs, TeacherOutputs
from kdcore.errors import Refused, did_you_mean, shortened
from kdcore.registry import Registry
from kdcore.section import Section
from kdcore.terms.foreign import check_declared, make_term

REGISTRY: Registry[Term] = Registry("terms")


@dataclass(frozen=True)
class TermInputs:
    """What a term may read of one micro-batch.

    All tensors are as the networks gave them (any float type).

    labels [B] int64, or [B,K] soft or of several labels; student_logits [B,K]; student_features {tap: tensor}; teacher:
    its outputs; sample_ids [B]; views [B]: each row's view number, not given if all rows are in one view;
    student_input_gradient [B,3,H,W]: of the student's cross-entropy, with its graph; epoch: epochs done before this
    step, as in `Batch` (what a term draws at random is a function of it, of the sample's number and of its view).
    """

    labels: Tensor
    student_logits: Tensor
    teacher: TeacherOutputs
    student_features: Mapping[str, Tensor] = field(default_factory=dict)
    sample_ids: Tensor | None = None
    views: Tensor | None = None
    student_input_gradient: Tensor | None = None
    epoch: float | None = None

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits [B,K], which the term has declared."""
        assert self.teacher.logits is not None, "the term did not declare teacher_logits"
        return self.teacher.logits


@dataclass(frozen=True)
class TermContext:
    """What a term may know when its weights are created.

    student_shapes and teacher_shapes: {tap: shape without the batch}, the student's in the order of a forward pass;
    num_classes; num_samples in the training set;
    classes: their names, in the order of the outputs; class_means: {teacher tap: [K,D]} where declared;
    class_similarity [K,K]: how alike the teacher takes two classes to be, where declared; sample_labels [num_samples]
    int64: the class of every training sample, by sample id, where each has one; class_counts [K] int64: the
    number of training samples that show each class; compared: for a student that reuses the teacher's classifier, the
    function that brings its own last features and the teacher's to one layout and size; seed: the run's; num_views: per
    sample, if views repeat.
    """

    student_shapes: Mapping[str, torch.Size]
    teacher_shapes: Mapping[str, torch.Size]
    num_classes: int
    num_samples: int
    classes: tuple[str, ...] = ()
    class_means: Mapping[str, Tensor] = field(default_factory=dict)
    class_similarity: Tensor | None = None
    sample_labels: Tensor | None = None
    class_counts: Tensor | None = None
    compared: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    seed: int = 0
    num_views: int | None = None


class Term(Section):
    """A weighted loss, as data: base of every term, with the fields that all of them have.

    The text below a field is its description, as `python -m ops fields TERM` shows it.
    """

    term: str
    """The term's name."""
    weight: float = Field(ge=0)
    """What the loss is multiplied by before the terms are added. 0 leaves the term out, with all that it reads."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the weight rises linearly from 0, step by step; 0 for none."""
    decay_from_epoch: float | None = Field(default=None, ge=0)
    """Epochs done when the weight begins to fall to 0, which it reaches at the end of the run, along a half cosine.
    Not given: the weight stays."""
    teacher: str | None = None
    """With several teachers: the name of the one that the term reads. Not given: the average of their logits."""

    # Whether labels and logits are read class by class, as images with several labels have them.
    multi_label: ClassVar[bool] = False
    # Whether the student's logits are read beside its taps; without taps there is nothing else to read of it.
    reads_logits: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        name = cls.model_fields["term"].default
        if not isinstance(name, str):
            return  # an intermediate base class
        REGISTRY.add(name, cls)

    def needs(self) -> Needs:
        """Return what this term reads."""
        return Needs()

    @property
    def fits_multi_label(self) -> bool:
        """Whether images may have several labels: if labels and logits are not read, or read class by class."""
        return self.multi_label or not (self.needs().reads_labels or self.needs().teacher_logits)

    @property
    def teaches_classifier(self) -> bool:
        """Whether the student's classifier learns the classes: from its logits, or their gradient at the images."""
        needs = self.needs()
        return self.reads_logits or needs.student_input_gradient or not needs.student_taps

    def loss(self, inputs: TermInputs) -> Tensor:
        """Return the un-reduced loss [B], in float32."""
        raise NotImplementedError(f"{type(self).__name__} gives neither loss() nor build()")

    def build(self, context: TermContext) -> nn.Module:
        """Build the module that computes the loss: forward(TermInputs) -> [B].

        Its weights are trained with the student and are never exported.
        """
        return Stateless(self)

    def weight_at(self, epoch: float, num_epochs: float | None = None) -> float:
        """Return the weight after `epoch` epochs of a run of num_epochs, which only a decay reads."""
        return scheduled_weight(self.weight, self.warmup_epochs, self.decay_from_epoch, epoch, num_epochs)

    @property
    def goes_by_epoch(self) -> bool:
        """Whether anything about the loss is a function of the epoch: its weight, or what it computes."""
        own_course = type(self).weight_at is not Term.weight_at
        return own_course or self.computes_by_epoch or self.warmup_epochs > 0 or self.decay_from_epoch is not None

    @property
    def computes_by_epoch(self) -> bool:
        """Whether the value itself is a function of the epoch, as what is drawn, or a temperature with a course, is.

        True for a term that says of itself that it goes by the epoch.
        """
        return type(self).goes_by_epoch is not Term.goes_by_epoch

    def is_constant_at(self, epoch: float) -> bool:
        """Return whether nothing goes by the epoch now: the weight is past its warm-up and not yet decaying.

        False for a weight with its own schedule, and for a value that goes by the epoch.
        """
        if self.computes_by_epoch or type(self).weight_at is not Term.weight_at:
            return False
        return epoch >= self.warmup_epochs and (self.decay_from_epoch is None or epoch < self.decay_from_epoch)

    def check_epochs(self, num_epochs: float | None) -> None:
        """Refuse a decay that would begin when the run is over, or whose end is not known."""
        if self.decay_from_epoch is not None and (num_epochs is None or self.decay_from_epoch >= num_epochs):
            length = "no known number of" if num_epochs is None else f"{num_epochs:g}"
            raise Refused(
                f"term {self.term!r}: its weight decays from epoch {self.decay_from_epoch:g} on, but the run has "
                f"{length} epochs; lower decay_from_epoch"
            )


def scheduled_weight(
    weight: float, warmup_epochs: float, decay_from_epoch: float | None, epoch: float, num_epochs: float | None
) -> float:
    """Return a weight after `epoch` epochs of a run of num_epochs, which only a decay reads."""
    if warmup_epochs:
        weight *= min(1.0, epoch / warmup_epochs)
    if decay_from_epoch is not None and epoch > decay_from_epoch:
        assert num_epochs is not None, "a weight that decays reaches 0 at the run's end, which is not known"
        done = (epoch - decay_from_epoch) / (num_epochs - decay_from_epoch)
        weight *= (1 + math.cos(math.pi * min(1.0, done))) / 2
    return weight


class Stateless(nn.Module):
    """A term without weights, as a module."""

    def __init__(self, config: Term) -> None:
        super().__init__()
        self.config = config

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the term's loss [B]."""
        return self.config.loss(inputs)


class SteppedModule(nn.Module):
    """A term's module that does something once per optimiser step, however many micro-batches each rank runs in it.

    A collective belongs here: in `forward`, ranks with unequal numbers of micro-batches would wait for one another.
    """

    def end_step(self) -> None:
        """Do what follows the last micro-batch of a step that was taken; called on every rank."""
        raise NotImplementedError(f"{type(self).__name__} does not say what ends a step")

    def forward_buffers(self) -> Iterable[Tensor]:
        """Return the buffers that `forward` may write: all, unless a term says which; they are copied for every step.

        Only where a step may be skipped: these have their values from before it again when `drop_step` is called.
        """
        return self.buffers()

    def drop_step(self) -> None:
        """Undo on the host what a skipped step did; what `forward` wrote is undone already (`forward_buffers`)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what undoes a step")


class Pair(Section):
    """A tap of the student and the tap of the teacher that it is compared with."""

    student: str
    """A tap of the student: the name of a module in its network, as `python -m ops show RECIPE` lists them."""
    teacher: str
    """The tap of the teacher."""


def unique_names(terms: Iterable[Term]) -> dict[str, Term]:
    """Return {name: term} of those with a weight above 0; a second term of one kind gets a number: ce, kd, kd_2."""
    named: dict[str, Term] = {}
    for term in (term for term in terms if term.weight > 0):
        number = sum(other.term == term.term for other in named.values()) + 1
        named[term.term if number == 1 else f"{term.term}_{number}"] = term
    return named


def tap_askers(terms: Mapping[str, Term], side: Literal["student", "teacher"]) -> dict[str, str]:
    """Return {tap: 'term fitnet, pairs'}: the first term that asks a network for a tap, and the field naming it.

    terms: by name, as `unique_names` gives them.
    """
    askers: dict[str, str] = {}
    for name, term in terms.items():
        needs = term.needs()
        for tap in needs.student_taps if side == "student" else needs.teacher_taps | needs.class_means:
            values = {field: getattr(term, field) for field in type(term).model_fields}
            fields = [field for field, value in values.items() if _names_tap(field, value, tap, side)]
            askers.setdefault(tap, ", ".join([f"term {name}", *fields[:1]]))
    return askers


def _names_tap(field: str, value: object, tap: str, side: str) -> bool:
    if isinstance(value, tuple):
        return any(isinstance(pair, Pair) and getattr(pair, side) == tap for pair in value)
    return value == tap and field.startswith(side)


def parse_term(data: Any) -> Term:
    """Make the term that a recipe's mapping describes. The refusal names the nearest known terms."""
    if isinstance(data, Term):
        check_declared(data)
        return data
    if not isinstance(data, Mapping) or not isinstance(data.get("term"), str):
        raise Refused(
            "a term is a mapping with a 'term' key, such as {term: kd, weight: 1, temperature: 4}; got "
            + shortened(repr(data))
        )
    name = data["term"]
    if name not in REGISTRY:
        hint = did_you_mean(name, REGISTRY, f"known are {', '.join(sorted(REGISTRY))}")
        raise Refused(f"unknown term {shortened(name)!r}; {hint}")
    return make_term(REGISTRY[name], dict(data))

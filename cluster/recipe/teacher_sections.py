"""What a recipe says of several teachers, and what it cannot say.

A teacher among several is a teacher like any other: its cache is built, verified and read by the recipe that names only
it, with the terms that read it (`RunConfig.teacher_recipes`). So a cache serves any ensemble, whatever the weights.

Not here: how answers are averaged (`kdcore.ensemble`), and the networks at work (`cluster.teachers.running`).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, ClassVar, Protocol

from pydantic import Field

from cluster.recipe.run_sections import TrainConfig
from cluster.recipe.sections import StudentConfig, TeacherConfig
from kdcore.batch import Needs
from kdcore.configs import PATH
from kdcore.ensemble import Average, Weighting
from kdcore.errors import Refused
from kdcore.section import Section
from kdcore.terms.base import Term, scheduled_weight
from kdcore.terms.features import SimKD


class MemberConfig(TeacherConfig):
    """A teacher among several."""

    section: ClassVar[str] = "teachers.N"

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")
    """What terms and results call this teacher."""
    weight: float = Field(default=1.0, ge=0)
    """Its part in the average of the teachers' logits, relative to the others'. 0 leaves it out of the average."""
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which its weight rises linearly from 0; 0 for none."""
    decay_from_epoch: float | None = Field(default=None, ge=0)
    """Epochs done when its weight begins to fall to 0, which it reaches at the end of the run, along a half cosine. Not
    given: the weight stays."""
    cache_dir: Annotated[str | None, PATH] = None
    """The folder of its cache. Not given: one of its name in `cache.dir`."""

    def alone(self) -> TeacherConfig:
        """Return it as a recipe's only teacher."""
        return TeacherConfig(**{name: getattr(self, name) for name in TeacherConfig.model_fields})

    def weight_at(self, epoch: float, num_epochs: float) -> float:
        """Return its weight after `epoch` epochs."""
        return scheduled_weight(self.weight, self.warmup_epochs, self.decay_from_epoch, epoch, num_epochs)


class EnsembleConfig(Section):
    """How the answers of several teachers are averaged."""

    average: Average = "logits"
    """What is averaged: the `logits`, or the `probabilities` at temperature 1, whose logarithm then takes the logits'
    place."""
    weighting: Weighting = "fixed"
    """`fixed`: every image has the teachers' weights. `confidence`: of each image they are multiplied by exp(-H) first,
    with H the entropy in nats of the teacher's answer."""


class Recipe(Protocol):
    """The parts of a `RunConfig` that concern its teachers."""

    @property
    def teacher(self) -> TeacherConfig | None: ...
    @property
    def teachers(self) -> tuple[MemberConfig, ...]: ...
    @property
    def method(self) -> tuple[Term, ...]: ...
    @property
    def student(self) -> StudentConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def needs(self) -> Needs: ...


def read_by(config: Recipe, member: MemberConfig) -> Sequence[Term]:
    """Return the terms that read a teacher: those that name it, and those that read the average if it is part of it."""
    return [
        term
        for term in config.method
        if term.weight > 0
        and term.needs().reads_teacher
        and (term.teacher == member.name or (term.teacher is None and member.weight > 0 and member.head == "own"))
    ]


def check_a_teacher_is_there(config: Recipe) -> None:
    """Refuse a method that reads a teacher where there is none."""
    if not (config.teacher or config.teachers) and (
        config.needs.reads_teacher or config.student.classifier == "reused"
    ):
        wants = [t.term for t in config.method if t.needs().reads_teacher] or ["student.classifier: reused"]
        raise Refused(f"{', '.join(wants)} needs a teacher; add a 'teacher:' section with a model")


def check_teachers(config: Recipe) -> None:
    """Refuse what a recipe cannot say of several teachers, and teachers that no term reads."""
    names = [member.name for member in config.teachers]
    if config.teacher is not None and names:
        raise Refused("teacher and teachers are both given; put the one among the teachers, or leave one out")
    for term in config.method:
        if term.teacher is not None and term.teacher not in names:
            near = difflib.get_close_matches(term.teacher, names, n=3) or names
            hint = f"did you mean {', '.join(near)}?" if near else "the recipe has no 'teachers:', so leave teacher out"
            raise Refused(f"term {term.term}: there is no teacher called {term.teacher!r}; {hint}")
    if not names:
        return
    if twice := [name for name in names if names.count(name) > 1]:
        raise Refused(f"two teachers are called {twice[0]!r}; rename one")
    if config.student.classifier == "reused":
        _check_one_classifier(config)
    if all(member.weight == 0 and member.head == "own" for member in config.teachers):
        raise Refused("every teacher has weight 0, but students are compared with their average; give one a weight")
    _check_average(config)
    for member in config.teachers:
        if member.image_size is not None and not member.cached:
            raise Refused(
                f"teacher {member.name} has image_size={member.image_size}, but one of several beside the student sees "
                "the student's images; set its source to cache, or leave image_size out"
            )
        if member.weight > 0 and not read_by(config, member):
            raise Refused(f"teacher {member.name} is read by no term; leave it out, or name it in one (teacher: NAME)")


def check_heads(config: Recipe) -> None:
    """Refuse terms that read what only a head gives from a teacher without one."""
    named: dict[str | None, TeacherConfig] = {member.name: member for member in config.teachers}
    if config.teacher is not None:
        named[None] = config.teacher
    for term in config.method:
        teacher, needs = named.get(term.teacher), term.needs()
        if term.weight == 0 or teacher is None or teacher.head == "own":
            continue
        if needs.of_teacher != Needs(teacher_taps=needs.teacher_taps):
            raise Refused(
                f"{term.term} reads more than features of the teacher {teacher.model}, whose head is none; take terms "
                "on features, such as fitnet, rkd or sp"
            )
    lender = named.get(classifier_lender(config)) if config.student.classifier == "reused" else None
    if lender is not None and lender.head == "none":
        raise Refused(f"student.classifier: reused takes the classifier of {lender.model}, but its head is none")


def classifier_lender(config: Recipe) -> str | None:
    """Return which of several teachers lends SimKD's student its classifier: the one that the simkd term names."""
    return next((term.teacher for term in config.method if term.weight > 0 and isinstance(term, SimKD)), None)


def _check_one_classifier(config: Recipe) -> None:
    """Refuse a student that reuses the classifier of several teachers, or names none of them."""
    names = {term.teacher for term in config.method if term.weight > 0 and isinstance(term, SimKD)}
    if len(names) == 1 and None not in names:
        return
    some = next((name for name in names if name), config.teachers[0].name)
    raise Refused(
        "student.classifier: reused takes map and classifier from one teacher, as they cannot be averaged; "
        f"have one simkd term name it: {{term: simkd, teacher: {some}}}"
    )


def _check_average(config: Recipe) -> None:
    """Refuse an average of nothing, and terms that read from it what is not averaged."""
    averaged = [
        term for term in config.method if term.weight > 0 and term.teacher is None and term.needs().reads_teacher
    ]
    parts = [member for member in config.teachers if member.weight > 0 and member.head == "own"]
    if averaged and not any(member.warmup_epochs == 0 for member in parts):
        raise Refused(
            f"{averaged[0].term} reads the teachers' average, in which no teacher has a weight at the run's beginning; "
            "give one a weight above 0 without warmup_epochs"
        )
    for term in averaged:
        if term.needs().of_teacher != Needs(teacher_logits=True):
            raise Refused(
                f"{term.term} reads more than logits, and only logits are averaged over teachers; name the one it "
                f"reads: teacher: {config.teachers[0].name}"
            )
    for member in config.teachers:
        if member.decay_from_epoch is not None and member.decay_from_epoch >= config.train.epochs:
            raise Refused(
                f"teacher {member.name}: its weight decays from epoch {member.decay_from_epoch:g} on, but the run has "
                f"{config.train.epochs} epochs; lower decay_from_epoch"
            )

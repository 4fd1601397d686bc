"""The configuration of a run: one frozen, strict model, resolved once, the same on every rank.

A recipe (YAML) plus `key=value` overrides becomes a `RunConfig`; it is written to the run's folder and to MLflow,
goes through Ray as a plain dictionary and is validated again in every worker. What the machine decides (world size,
device) is not part of it.

Not here: the sections themselves (`cluster.recipe.sections`, `cluster.recipe.run_sections`), what they must say
together (`cluster.recipe.rules`), and how recipes are read, overridden and written (`cluster.recipe.reading`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from cluster.recipe.about import AboutConfig
from cluster.recipe.rules import RULES, check_not_reserved, micro_batch_size, require_teacher
from cluster.recipe.run_sections import CheckpointConfig, ScalingConfig, TrackingConfig, TrainConfig
from cluster.recipe.sections import CacheConfig, DataConfig, StudentConfig, TeacherConfig
from cluster.recipe.teacher_sections import EnsembleConfig, MemberConfig, classifier_lender, read_by
from kdcore.batch import Needs
from kdcore.configs import PATH, PLUGINS, OptimizerConfig, ScheduleConfig
from kdcore.errors import Refused
from kdcore.located import is_uri
from kdcore.section import Section
from kdcore.terms import Term, parse_term
from pipelines.views.policy import ViewPolicy


class RunConfig(Section):
    """Everything that decides what a run computes, and what is to be known about it."""

    # Sections that may change between two starts of a run: they do not affect what it computes. The number of workers
    # does where `train.micro_batch` is open: `micro_batch` is compared.
    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"about", "scaling", "tracking", "checkpoint"})

    # Fields that may, too: where data and code lie (their fingerprints are compared instead), and what reads them.
    INCIDENTAL_FIELDS: ClassVar[frozenset[str]] = frozenset(
        {
            "output_dir",
            "plugins",
            "data.root",
            "data.loader",
            "data.decode",
            "data.num_threads",
            "data.prefetch",
            "data.evaluation_batch",
            "data.copies_dir",
            "data.copies_bytes",
            "data.check",
            "data.max_pixels",
        }
        | {"cache.dir", "cache.copies_dir", "cache.batch_size", "cache.rows_per_shard", "cache.trust"}
    )

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name, which is its identity: the same name again continues it. Its files lie in `output_dir`/`name`."""
    plugins: Annotated[tuple[str, ...], PLUGINS] = ()
    """Your own modules, imported wherever the run computes: a dotted name, a file such as `./my_losses.py`, or a
    package's folder. Losses, networks, optimisers, kinds of images and trackers in them register themselves."""
    about: AboutConfig | None = None
    """What the recipe follows, should reach, and departs from; documentation only, without effect on the run."""
    output_dir: Annotated[str, PATH] = "outputs"
    """The folder of this run and its siblings, which every node of a cluster sees. What can be kept in an object store
    has fields of its own: `checkpoint.storage`, and `cache.dir` to read from."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the student's first weights and everything drawn in training."""
    view_seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Decides views, order and held-out images. Not given: `seed`. Runs with different seeds that read one cache share
    it."""
    data: DataConfig
    """The images."""
    views: ViewPolicy
    """How training images are augmented."""
    student: StudentConfig
    """The network to train."""
    teacher: TeacherConfig | None = None
    """The network to learn from. Not given: none."""
    teachers: tuple[MemberConfig, ...] = ()
    """Several networks to learn from, instead of `teacher`: each with a name, a weight, and its own cache."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """How the answers of several teachers are averaged."""
    cache: CacheConfig | None = None
    """Where the teacher's outputs are stored. Not given: nowhere."""
    method: tuple[Annotated[SerializeAsAny[Term], BeforeValidator(parse_term)], ...] = Field(min_length=1)
    """The losses: a list of terms, each with its weight; `python -m ops fields TERM` shows the fields of one."""
    optimizer: OptimizerConfig
    """The optimiser."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The course of the learning rate."""
    train: TrainConfig
    """Duration, batches, precision, and which weights are deployed."""
    scaling: ScalingConfig = ScalingConfig()
    """Workers, and what each of them takes."""
    tracking: TrackingConfig = TrackingConfig()
    """What is recorded, and where."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written, where, and how many stay."""

    @property
    def needs(self) -> Needs:
        return Needs.union(term.needs() for term in self.method if term.weight > 0)

    @property
    def plan_seed(self) -> int:
        """The seed of the view plan."""
        return self.seed if self.view_seed is None else self.view_seed

    @property
    def micro_batch(self) -> int:
        """The images of one forward pass: `train.micro_batch` or, where that is open, a worker's share of the batch."""
        return micro_batch_size(self, self.scaling.num_ranks)

    @property
    def for_teacher(self) -> RunConfig:
        """This recipe with the images as its teacher sees them: the same views, of `teacher.image_size`."""
        if self.teacher is None or self.teacher.image_size is None:
            return self
        return self.model_copy(
            update={
                "teacher": self.teacher.model_copy(update={"image_size": None}),
                "views": self.views.model_copy(update={"size": self.teacher.image_size, "sizes": ()}),
                "data": self.data.model_copy(update={"evaluation_size": None}),
            }
        )

    @property
    def all_teachers(self) -> tuple[TeacherConfig, ...]:
        """All teachers: one, several or none."""
        return (self.teacher,) if self.teacher else tuple(self.read_teachers)

    @property
    def teacher_recipes(self) -> list[RunConfig]:
        """This recipe once per teacher, with only that one; with one teacher, itself; without any, none."""
        if self.teacher is not None:
            return [self]
        return [self._with_one(member) for member in self.read_teachers]

    @property
    def read_teachers(self) -> list[MemberConfig]:
        """The members of `teachers` that a term reads; one of weight 0 that no term names is left out."""
        return [member for member in self.teachers if read_by(self, member)]

    @property
    def cache_recipes(self) -> list[RunConfig]:
        """The recipes, one per teacher, whose caches this one builds: of those that read a cache, or else of all.

        Refused where there is no teacher.
        """
        recipes = self.teacher_recipes or [self]
        return [one for one in recipes if require_teacher(one).cached] or recipes

    def _with_one(self, member: MemberConfig) -> RunConfig:
        """Return the recipe with only one of several teachers: its own cache, and the terms that read it."""
        cache = self.cache and self.cache.model_copy(
            update={"dir": member.cache_dir or f"{self.cache.dir}/{member.name}"}
        )
        terms = tuple(term.model_copy(update={"teacher": None}) for term in read_by(self, member))
        own: dict[str, Any] = {"teacher": member.alone(), "teachers": (), "ensemble": EnsembleConfig()}
        if member.name != classifier_lender(self):
            own["student"] = self.student.model_copy(update={"classifier": "own"})
        return self.model_copy(update={**own, "cache": cache, "method": terms})

    @property
    def has_random_teacher(self) -> bool:
        """Whether all teachers have fresh, random weights, as the recipe asks for."""
        return bool(self.all_teachers) and all(teacher.is_random for teacher in self.all_teachers)

    @property
    def run_dir(self) -> Path:
        return Path(self.output_dir) / self.name

    @property
    def storage(self) -> str:
        """Where the checkpoints of runs lie, each run's under its name: a folder or a URI."""
        return self.checkpoint.storage or str(Path(self.output_dir).absolute())

    @field_validator("output_dir")
    @classmethod
    def _check_output_dir(cls, output_dir: str) -> str:
        if is_uri(output_dir):
            raise Refused(
                f"output_dir is {output_dir}; journals grow line by line there, which an object store does not allow: "
                "give a folder that every node sees (a shared file system), and keep checkpoints in the store with "
                "checkpoint.storage=URI"
            )
        return output_dir

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        check_not_reserved(name)
        return name

    @model_validator(mode="after")
    def _check_across(self) -> RunConfig:
        for rule in RULES:
            rule(self)
        return self

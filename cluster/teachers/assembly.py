"""From a recipe to its teachers: each one's network online, or its answers from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cluster.images import evaluation_policy
from cluster.rank import Rank
from cluster.recipe.config import RunConfig
from cluster.teachers.stored import StoredTeacher, identity, open_stored_teacher, reuses_head
from kdcore.batch import Statistics
from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.fitting import remedy_for_classes
from kdcore.models import build_backbone, build_model, input_statistics
from kdcore.online_teacher import OnlineTeacher, renormalisation
from kdcore.reused import TeacherHead
from kdcore.terms.base import tap_askers, unique_names
from pipelines.data.source import Source
from pipelines.views.plan import ViewPlan


def assemble_teacher(
    config: RunConfig, indexes: dict[str, Source], plan: ViewPlan, statistics: Statistics, rank: Rank
) -> OnlineTeacher | StoredTeacher:
    """Build the teacher of a recipe with a single one, online or from its cache."""
    teacher, classes = config.teacher, tuple(indexes["train"].classes)
    assert teacher is not None, "a recipe with one"
    if teacher.cached:
        seen = config.for_teacher
        seen_plan = replace(plan, policy=seen.views)
        expected = identity(seen, indexes, seen_plan, evaluation_policy(seen), statistics)
        return open_stored_teacher(config, expected, classes, rank)
    network = build_teacher(teacher, classes) if teacher.head == "own" else build_backbone(teacher)
    return online_teacher(network, statistics, config, rank)


def build_teacher(config: ModelConfig, classes: tuple[str, ...]) -> nn.Module:
    """Build the teacher's network. Refused where its outputs are not the data's classes."""
    teacher = build_model(config, classes)
    if not teacher.num_classes:
        raise Refused(f"teacher {config.model!r} has no classifier, so it answers with no logits; take another model")
    num_outputs: Any = teacher.num_classes
    if num_outputs != len(classes):
        raise Refused(
            f"the teacher {config.model} for {len(classes)} classes of the data: "
            f"{remedy_for_classes(config, classes, num_outputs)}"
        )
    return teacher


def reused_head(config: RunConfig, teachers: Sequence[OnlineTeacher | StoredTeacher]) -> TeacherHead | None:
    """Return the head that SimKD's student takes from its teacher, of several the one that its term names; else None.

    teachers: those of `config.teacher_recipes`, in that order.
    """
    for recipe, teacher in zip(config.teacher_recipes, teachers, strict=True):
        if reuses_head(recipe):
            if isinstance(teacher, StoredTeacher):
                return teacher.head
            seen = recipe.for_teacher.views
            return TeacherHead.of(teacher.model, (seen.height, seen.width))
    return None


def online_teacher(model: nn.Module, statistics: Statistics, config: RunConfig, rank: Rank) -> OnlineTeacher:
    """Build a teacher that answers what the method needs, for images normalised by `statistics`."""
    scale = renormalisation(statistics, input_statistics(model))
    if scale is not None:
        scale = (scale[0].to(rank.device), scale[1].to(rank.device))
    asked_by = tap_askers(unique_names(config.method), "teacher")
    return OnlineTeacher(model.to(rank.device), config.needs, scale, asked_by)

"""What a run took, what its student will take where it is deployed, and its teacher's size."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cluster.assembly import Assembly
from cluster.images import deployed_size
from cluster.recipe.sections import TeacherConfig
from cluster.teachers.running import SINGLE
from cluster.training.checkpoint import TrainState
from kdcore.cost import deployment_cost
from kdcore.models import build_backbone, build_model, count_parameters
from kdcore.reporting import optional


def run_costs(run: Assembly, state: TrainState, say: Callable[[str], None]) -> dict[str, float]:
    """Return {metric: value} of a run at its end. say: told what cannot be computed."""
    seconds = state.train_seconds
    deployment = deployment_cost(state.evaluated, deployed_size(run.config), say)
    stored = run.teachers.stored.values()
    return {
        "cost/train_seconds": seconds,
        "cost/device_hours": seconds * run.rank.world_size / 3600,
        "speed/mean_images_per_second": run.batches.num_until(state.step) / max(seconds, 1e-9),
        **{f"model/{name}": value for name, value in deployment.items()},
        **teacher_size(run, say),
        **({"data/cache_bytes": sum(one.manifest.num_bytes for one in stored)} if stored else {}),
    }


def teacher_size(run: Assembly, say: Callable[[str], None]) -> dict[str, float]:
    """Return {metric: parameters of the one teacher}; empty for none, and for several, whose sum says little."""
    metric, teacher = "model/teacher_parameters", run.config.teacher
    if SINGLE in run.teachers.online:
        return {metric: float(count_parameters(run.teachers.single.model))}
    with optional("the cached teacher's number of parameters is", say):
        if teacher is not None:
            return {metric: float(parameters_of(teacher, run.classes))}
    return {}


def parameters_of(teacher: TeacherConfig, classes: tuple[str, ...]) -> int:
    """Count a teacher's parameters from its shapes only: a cached one's weights need not be on this machine."""
    bare = teacher.resolved().without_files()
    with torch.device("meta"):
        network = build_model(bare, classes) if bare.head == "own" else build_backbone(bare)
    return count_parameters(network)

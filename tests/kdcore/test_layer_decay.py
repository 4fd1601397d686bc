"""Rates that fall from layer to layer: the student's are timm's own, and what is no layer of it learns at full rate."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import kdcore.networks  # noqa: F401  registers cifar_resnet8
from kdcore.configs import OptimizerConfig, ScheduleConfig
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.optim import Schedule, build_optimizer
from kdcore.terms import parse_term

ARGS = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05}
DECAY = OptimizerConfig(**ARGS, args={"layer_decay": 0.65, "layer_decay_min_scale": 0.05})


def distiller_of(student: nn.Module, size: int) -> Distiller:
    teacher = timm.create_model("test_vit", img_size=32, num_classes=5)
    pair = {"student": "classifier_input", "teacher": "classifier_input"}
    term = parse_term({"term": "feature_mse", "weight": 1, "pairs": [pair]})
    shapes = OnlineTeacher(teacher, term.needs()).taps.shapes((32, 32))
    return Distiller(student, [term], image_size=(size, size), num_samples=8, teacher_shapes=shapes)


def scales(optimizer: torch.optim.Optimizer, module: nn.Module, prefix: str = "") -> dict[str, float]:
    names = {id(p): prefix + name for name, p in module.named_parameters()}
    return {names[id(p)]: g.get("lr_scale") for g in optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("vit_tiny_patch16_224", {"img_size": 32, "depth": 4}, 32),
        ("test_convnext", {}, 64),
        ("resnet10t", {}, 64),
        ("efficientnet_b0", {}, 64),
    ],
)
def test_the_students_scales_are_timms(name, args, size):
    student = timm.create_model(name, num_classes=5, **args)
    distiller = distiller_of(student, size)
    found = scales(build_optimizer(DECAY, distiller), distiller)
    options = {"layer_decay": 0.65, "layer_decay_min_scale": 0.05}
    alone = scales(create_optimizer_v2(student, **ARGS, **options), student, "student.")
    assert len(set(alone.values())) > 3
    extras = {key: value for key, value in found.items() if key.startswith("extras.")}
    assert {key: value for key, value in found.items() if key not in extras} == alone
    assert extras
    assert set(extras.values()) == {1.0}


@pytest.mark.parametrize("sched", ["constant", "cosine", "onecycle"])
def test_every_schedule_scales_the_rates(sched):
    optimizer = build_optimizer(DECAY, distiller_of(timm.create_model("test_convnext", num_classes=5), 64))
    schedule = Schedule(ScheduleConfig(sched=sched), optimizer, 2, 5)
    for step in range(10):
        schedule.set_step(step)
        full = max(group["lr"] for group in optimizer.param_groups)
        assert schedule.rate == full
        assert [group["lr"] / full for group in optimizer.param_groups] == pytest.approx(
            [group["lr_scale"] for group in optimizer.param_groups]
        )


def test_without_layer_decay_nothing_is_grouped_anew():
    distiller = distiller_of(timm.create_model("test_convnext", num_classes=5), 64)
    groups = build_optimizer(OptimizerConfig(**ARGS), distiller).param_groups
    assert [len(group["params"]) for group in groups] == [
        sum(p.ndim <= 1 for p in distiller.parameters()),
        sum(p.ndim > 1 for p in distiller.parameters()),
    ]
    assert not any("lr_scale" in group for group in groups)


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("cifar_resnet8", {"args": {"layer_decay": 0.5}}, "CifarResNet has no group_matcher.*leave layer_decay out"),
        ("test_convnext", {"args": {"layer_decay": 0.5}, "decay_all": True}, "no effect with decay_all"),
        ("test_convnext", {"args": {"layer_decay_min_scale": 0.1}}, "layer_decay_min_scale has no effect without"),
    ],
)
def test_what_would_do_nothing_is_refused(name, fields, reason):
    student = timm.create_model(name, num_classes=5)
    for module in (student, distiller_of(student, 64)):
        with pytest.raises(Refused, match=reason):
            build_optimizer(OptimizerConfig(**ARGS | fields), module)

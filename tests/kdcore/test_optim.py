"""The optimisers of timm's factory, and the learning rate as a function of the step."""

from __future__ import annotations

import math
import random

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from kdcore.configs import OptimizerConfig, ScheduleConfig
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.optim import Schedule, build_optimizer
from kdcore.terms import parse_term

STEPS = 5  # of an epoch


def one_parameter(opt: str = "momentum", lr: float = 0.1) -> torch.optim.Optimizer:
    return build_optimizer(OptimizerConfig(opt=opt, lr=lr), nn.Linear(2, 1, bias=False))


def rates(schedule: Schedule, optimizer: torch.optim.Optimizer, steps) -> list[float]:
    found = []
    for step in steps:
        schedule.set_step(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def rates_of(num_epochs: int = 6, steps_per_epoch: int = STEPS, **config) -> list[float]:
    """The rate at every step of a run whose base rate is 0.1."""
    optimizer = one_parameter()
    schedule = Schedule(ScheduleConfig(**config), optimizer, num_epochs, steps_per_epoch)
    return rates(schedule, optimizer, range(num_epochs * steps_per_epoch))


@pytest.mark.parametrize("steps_per_epoch", [1, 3, 5, 391, 5004])
def test_multistep_drops_at_the_first_step_of_the_milestone_epoch(steps_per_epoch):
    found = rates_of(4, steps_per_epoch, sched="multistep", milestones=(1, 3))
    expected = [0.1 * 0.1 ** ((epoch >= 1) + (epoch >= 3)) for epoch in range(4) for _ in range(steps_per_epoch)]
    assert found == pytest.approx(expected, rel=1e-9)


def test_multistep_takes_its_own_decay_rate_after_a_warm_up():
    found = rates_of(sched="multistep", milestones=(4,), decay_rate=0.5, warmup_epochs=2, warmup_lr=0.01)
    assert found[:10] == pytest.approx([0.01 + 0.009 * step for step in range(10)])
    assert found[10:20] == pytest.approx([0.1] * 10)
    assert found[20:] == pytest.approx([0.05] * 10)


def test_cosine_goes_from_the_base_rate_to_its_minimum():
    found = rates_of(sched="cosine", min_lr=0.02)
    assert found == pytest.approx([0.02 + 0.04 * (1 + math.cos(math.pi * step / 30)) for step in range(30)])
    assert found[0] == 0.1
    optimizer = one_parameter()
    schedule = Schedule(ScheduleConfig(sched="cosine", min_lr=0.02), optimizer, 6, STEPS)
    assert rates(schedule, optimizer, [30]) == pytest.approx([0.02])


def test_cosine_after_a_warm_up_of_half_an_epoch():
    found = rates_of(4, 4, sched="cosine", warmup_epochs=0.5, warmup_lr=0.0)
    assert found[:2] == pytest.approx([0.0, 0.05])
    assert found[2:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 16)) for step in range(2, 16)])


def test_a_prefix_puts_the_cosine_behind_the_warm_up():
    """DeiT's schedule of mmengine: 20 epochs up to 1e-3, then a cosine of 280 epochs down to 1e-5."""
    config = ScheduleConfig(sched="cosine", warmup_epochs=20, warmup_lr=1e-6, min_lr=1e-5, warmup_prefix=True)
    optimizer = one_parameter("adamw", lr=1e-3)
    schedule = Schedule(config, optimizer, 300, STEPS)
    found = rates(schedule, optimizer, [STEPS * epoch for epoch in (0, 10, 20, 100, 160, 240, 300)])
    assert found == pytest.approx([1e-6, 5.005e-4, 1e-3, 8.14e-4, 5.05e-4, 1.18e-4, 1e-5], rel=2e-3)
    cosine = [1e-5 + 9.9e-4 * (1 + math.cos(math.pi * (epoch - 20) / 280)) / 2 for epoch in (20, 100, 160, 240, 300)]
    assert found[2:] == pytest.approx(cosine, rel=1e-9)


def test_a_prefix_as_long_as_the_run_is_refused():
    with pytest.raises(Refused, match="leaves none of the run's 6 epochs"):
        rates_of(sched="cosine", warmup_epochs=6, warmup_prefix=True)


def test_constant_is_constant_with_and_without_a_warm_up():
    assert rates_of(sched="constant") == [0.1] * 30
    found = rates_of(sched="constant", warmup_epochs=1, warmup_lr=0.05)
    assert found == pytest.approx([0.05, 0.06, 0.07, 0.08, 0.09] + [0.1] * 25)


@pytest.mark.parametrize("opt", ["momentum", "adamw"])
@pytest.mark.parametrize("num_steps", [10, 37, 1000])
def test_onecycle_is_pytorchs_step_by_step(opt, num_steps):
    ours, theirs = one_parameter(opt), one_parameter(opt)
    reference = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.1, total_steps=num_steps)
    schedule = Schedule(ScheduleConfig(sched="onecycle"), ours, 1, num_steps)
    for step in range(num_steps):
        schedule.set_step(step)
        (group,), (expected,) = ours.param_groups, theirs.param_groups
        assert group["lr"] == pytest.approx(expected["lr"], rel=1e-9)
        if opt == "adamw":
            assert group["betas"] == pytest.approx(expected["betas"])
        else:
            assert group["momentum"] == pytest.approx(expected["momentum"])
        theirs.step()
        if step + 1 < num_steps:
            reference.step()


def test_onecycle_in_a_run_too_short_to_rise_still_ends_low():
    found = rates_of(1, 2, sched="onecycle")
    assert found == pytest.approx([0.004, 0.1])
    assert rates_of(1, 3, sched="onecycle")[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_onecycle_stands_at_its_start_before_the_first_step():
    optimizer = one_parameter()
    Schedule(ScheduleConfig(sched="onecycle"), optimizer, 1, 20)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.004)
    assert optimizer.param_groups[0]["momentum"] == pytest.approx(0.95)


CONFIGS = [
    ScheduleConfig(sched="cosine", warmup_epochs=1),
    ScheduleConfig(sched="multistep", milestones=(2, 4), warmup_epochs=1),
    ScheduleConfig(sched="constant", warmup_epochs=1),
    ScheduleConfig(sched="constant"),
    ScheduleConfig(sched="onecycle"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.sched}-{c.warmup_epochs}")
def test_the_rate_is_a_function_of_the_step(config):
    optimizer = one_parameter()
    schedule = Schedule(config, optimizer, 6, STEPS)
    in_order = rates(schedule, optimizer, range(30))
    shuffled = random.Random(0).sample(range(30), 30)
    assert rates(schedule, optimizer, shuffled) == [in_order[step] for step in shuffled]
    resumed = one_parameter()
    resumed.load_state_dict(optimizer.state_dict())  # with whatever rate it stopped at
    again = Schedule(config, resumed, 6, STEPS)
    assert rates(again, resumed, range(17, 30)) == in_order[17:]


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"sched": "cosine", "milestones": (3,)}, "milestones has no meaning for sched 'cosine'"),
        ({"sched": "onecycle", "warmup_epochs": 5}, "warmup_epochs has no meaning for sched 'onecycle'"),
        ({"sched": "constant", "min_lr": 0.1}, "min_lr has no meaning for sched 'constant'"),
        ({"sched": "multistep"}, "needs milestones"),
        ({"sched": "multistep", "milestones": (4, 2)}, "must be above 0 and ascend"),
        ({"sched": "multistep", "milestones": (0, 2)}, "must be above 0 and ascend"),
        ({"sched": "step"}, "'cosine', 'multistep', 'constant' or 'onecycle'"),
        ({"warmup": 5}, "Extra inputs"),
    ],
)
def test_settings_that_would_be_skipped_are_refused(config, complaint):
    with pytest.raises(ValidationError, match=complaint):
        ScheduleConfig(**config)


def test_a_schedule_survives_the_way_to_a_worker():
    for config in CONFIGS:
        assert ScheduleConfig.model_validate(config.model_dump(mode="json")) == config


def decayed(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}


def trained(optimizer: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def small_net() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    net[2].requires_grad_(False)
    return net


def test_weight_decay_spares_biases_and_norms_unless_told():
    net = small_net()
    spared = build_optimizer(OptimizerConfig(lr=0.1, weight_decay=1e-4), net)
    assert decayed(spared) == {id(net[0].weight)}
    everything = build_optimizer(OptimizerConfig(lr=0.1, weight_decay=1e-4, decay_all=True), net)
    learning = {id(p) for p in net.parameters() if p.requires_grad}
    assert decayed(everything) == trained(everything) == trained(spared) == learning


def test_a_vits_positions_are_spared_inside_a_distiller_too():
    student = timm.create_model("test_vit", num_classes=5, img_size=32)
    distiller = Distiller(student, [parse_term({"term": "ce", "weight": 1})], image_size=(32, 32), num_samples=4)
    optimizer = build_optimizer(OptimizerConfig(opt="adamw", lr=1e-3, weight_decay=0.05), distiller)
    assert decayed(optimizer) == {
        id(p) for n, p in student.named_parameters() if p.ndim > 1 and n not in {"pos_embed", "cls_token"}
    }
    assert trained(optimizer) == {id(p) for p in student.parameters()}


def test_timms_names_give_the_optimisers_they_promise():
    net = nn.Linear(2, 2)
    nesterov = build_optimizer(OptimizerConfig(opt="sgd", lr=0.1, momentum=0.8), net)
    plain = build_optimizer(OptimizerConfig(opt="momentum", lr=0.1, momentum=0.8), net)
    for optimizer in (nesterov, plain):
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.param_groups[0]["momentum"] == 0.8
        assert optimizer.param_groups[0]["lr"] == 0.1
    assert nesterov.param_groups[0]["nesterov"]
    assert not plain.param_groups[0]["nesterov"]
    adamw = build_optimizer(OptimizerConfig(opt="adamw", lr=1e-3, args={"betas": (0.8, 0.99), "fused": True}), net)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.99)
    assert adamw.param_groups[0]["fused"]


def test_an_unknown_optimiser_is_an_error():
    with pytest.raises(Refused, match="sdg"):
        build_optimizer(OptimizerConfig(opt="sdg", lr=0.1), nn.Linear(2, 2))


def test_an_optimiser_of_second_order_is_refused():
    with pytest.raises(Refused, match="adahessian' needs second derivatives"):
        build_optimizer(OptimizerConfig(opt="adahessian", lr=0.1), nn.Linear(2, 2))

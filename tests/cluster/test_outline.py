"""A run's shapes are those of the run itself, without weights; a network that asks for a value has it."""

from __future__ import annotations

import torch

from cluster.assembly import assemble
from cluster.outline import outline
from cluster.rank import Rank
from cluster.recipe import parse
from kdcore.cost import multiply_adds
from kdcore.models import count_parameters
from kdcore.taps import CLASSIFIER_INPUT, usable_taps
from tests.cluster.runs import Branching

SIZE = (16, 16)


def test_shapes_and_costs_are_those_of_the_run(recipe):
    config = parse(recipe(teacher={"model": "cifar_resnet8", "random": True}))
    seen, real = outline(config), assemble(config, Rank(0, 1, torch.device("cpu")))
    assert seen.plan == real.plan
    for shapes, network in zip(seen.networks, real.networks, strict=True):
        assert all(parameter.is_meta for parameter in shapes.parameters())
        assert count_parameters(shapes) == count_parameters(network)
        assert multiply_adds(shapes, SIZE) == multiply_adds(network, SIZE)
        names = [name for name, _ in network.named_modules() if name]
        assert usable_taps(shapes, [*names, CLASSIFIER_INPUT], SIZE) == usable_taps(
            network, [*names, CLASSIFIER_INPUT], SIZE
        )


def test_a_network_that_asks_for_values_has_them(recipe):
    run = outline(parse(recipe(student={"model": f"{Branching.__module__}:Branching"})))
    assert not any(parameter.is_meta for parameter in run.student.parameters())

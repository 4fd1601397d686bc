"""A run's shapes are those of the run itself, without weights; a network that asks for a value has it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cluster.assembly import assemble
from cluster.cache.builder import Builder
from cluster.cache.outlook import outlook
from cluster.outline import outline
from cluster.rank import Rank
from cluster.recipe.reading import parse
from kdcore.cost import multiply_adds
from kdcore.errors import Refused
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


class Answering(nn.Module):
    """A network that answers with a mapping, a map, or logits of other classes."""

    def __init__(self, num_classes: int, kind: str) -> None:
        super().__init__()
        self.kind, self.classifier = kind, nn.Linear(3, 1000 if kind == "others" else num_classes)

    def forward(self, images: torch.Tensor) -> object:
        if self.kind == "map":
            return self.classifier(images.permute(0, 2, 3, 1))
        logits = self.classifier(images.mean(dim=(2, 3)))
        return {"logits": logits} if self.kind == "mapping" else logits


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [("mapping", "with a dict, not with logits"), ("map", "with a tensor .2, 16, 16, 3"), ("others", "1000 logits")],
)
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_that_gives_no_logits(recipe, kind, complaint, role):
    network = {"model": f"{__name__}:Answering", "args": {"kind": kind}}
    changes = {role: network | ({"random": True} if role == "teacher" else {})}
    with pytest.raises(Refused, match=f"Answering answers.*{complaint}"):
        outline(parse(recipe(**changes)))
    cached = {"teacher": {"model": "cifar_resnet8", "random": True}, "cache": {"dir": "cache", "batch_size": 4}}
    changes = cached | changes | {"method": [{"term": "kd", "weight": 1.0, "temperature": 4.0}], "views__num_views": 1}
    config = parse(recipe(**changes, data__loader="reference"))
    with pytest.raises(Refused, match=f"Answering answers.*{'with a dict' if kind == 'mapping' else complaint}"):
        outlook(config, torch.device("cpu"), 0.0)
    if role == "teacher":
        with pytest.raises(Refused, match=f"Answering answers.*{complaint}"):
            Builder(config, torch.device("cpu")).plan()


class ByDevice(nn.Module):
    """A network with a table of the devices that it knows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scale = {"cpu": 1.0, "cuda": 2.0}[images.device.type]
        return self.classifier(scale * images.mean(dim=(2, 3)))


@pytest.mark.parametrize("network", [Branching, ByDevice])
def test_a_network_that_asks_for_values_has_them(recipe, network):
    """Whatever it raises without: a KeyError was the end of `show`, where training went on."""
    run = outline(parse(recipe(student={"model": f"{network.__module__}:{network.__name__}"})))
    assert not any(parameter.is_meta for parameter in run.student.parameters())

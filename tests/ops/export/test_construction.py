"""What an export says that builds its network: timm alone, this project, or somebody's own code."""

import sys
from types import ModuleType

import pytest
import timm

import ops.export.construction
from kdcore.configs import ModelConfig
from kdcore.models import build_model
from ops.export.construction import Construction

CLASSES = ("a", "b", "c")


def construction_of(model: str, **args) -> Construction:
    config = ModelConfig(model=model, args=args)
    return Construction.of(config, build_model(config, CLASSES))


@pytest.fixture
def mynets(monkeypatch):
    """A module of somebody's own, whose networks are timm's."""
    made = ModuleType("mynets")
    made.student = lambda num_classes, **args: timm.create_model("test_resnet", num_classes=num_classes, **args)
    monkeypatch.setitem(sys.modules, "mynets", made)

    def my_resnet(num_classes, **of_timm):
        return made.student(num_classes)

    my_resnet.__module__ = "mynets"
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "my_resnet", my_resnet)  # as register_model does


@pytest.mark.parametrize(
    ("model", "in_timm", "needs_code"),
    [
        ("test_resnet", True, False),
        ("test_resnet.r160_in1k", True, False),
        ("cifar_resnet8", False, False),
        ("torchvision:squeezenet1_1", False, False),
        ("timm.models:test_resnet", False, False),
        ("mynets:student", False, True),
        ("my_resnet", False, True),
    ],
)
def test_who_makes_a_network(mynets, model, in_timm, needs_code):
    made = construction_of(model)
    assert (made.architecture, made.in_timm, made.needs_code) == (model, in_timm, needs_code)


def test_a_repository_of_a_hub_stands_for_what_its_file_names(monkeypatch):
    """So that nobody needs the hub: timm builds the same network by its own name, with the arguments of both."""
    told = {"num_classes": 5}, "test_resnet", {"num_classes": 5, "act_layer": "silu"}
    monkeypatch.setattr(
        ops.export.construction, "load_model_config_from_hf", lambda name: told if name == "x/y" else None
    )
    network = timm.create_model("test_resnet", num_classes=3, act_layer="silu")
    made = Construction.of(ModelConfig(model="hf-hub:x/y", args={"drop_rate": 0.1}), network)
    assert made == Construction("test_resnet", {"act_layer": "silu", "drop_rate": 0.1}, True, False)
    again = timm.create_model(made.architecture, num_classes=3, **made.args)
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == {
        name: tensor.shape for name, tensor in network.state_dict().items()
    }

"""What is wrong with a user's own network is said with its line, and what to change there."""

import pytest
from torch import nn

from kdcore.configs import ModelConfig
from kdcore.errors import Refused
from kdcore.models import build_model
from kdcore.rehearsal import check_network
from kdcore.taps import FeatureTaps

pytestmark = pytest.mark.usefixtures("own_nets")


def build(model: str, **fields) -> nn.Module:
    return build_model(ModelConfig(model=model, **fields), ("ant", "bee", "cat"))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("own_nets:biuld", "own_nets has no 'biuld'; did you mean build"),
        ("own_nets:number", "number is of type int; name a function that returns the network"),
        ("own_nats:build", r"there is no module 'own_nats'; name its file as a plug-in"),
        ("own_nets:nothing", "model 'own_nets:nothing' returns a dict, not a torch.nn.Module"),
    ],
)
def test_functions_that_give_no_network(model, message):
    with pytest.raises(Refused, match=message) as refused:
        build(model)
    assert "\n" not in str(refused.value)


def test_arguments_that_it_does_not_take():
    with pytest.raises(Refused, match=r"'own_nets:build' does not take args {'depth': 3} \(TypeError"):
        build("own_nets:build", args={"depth": 3})
    with pytest.raises(Refused, match="pretrained means weights that timm or torchvision downloads"):
        build("own_nets:build", pretrained=True)


@pytest.mark.parametrize("args", [{}, {"width": 8}])
def test_a_class_that_does_not_take_num_classes(args):
    """It was told to give the args that it needs."""
    reason = r"\(TypeError: .*unexpected keyword argument 'num_classes'\); have it take this argument, the number of"
    with pytest.raises(Refused, match=rf"model 'own_nets:Unasked' does not take num_classes {reason}"):
        build("own_nets:Unasked", args=args)


def test_weights_of_ones_own_that_are_not_there():
    """It was taken for a hub that does not answer."""
    with pytest.raises(
        Refused, match=r"your code cannot build .*absent' \(FileNotFoundError: .* at .*own_nets.py:\d+\)"
    ):
        build("own_nets:absent")


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("own_nets:Wrong", r"\(AttributeError: .* 'bodi' at .*/own_nets.py:\d+\); correct that line$"),
        ("own_nets:Narrow", r"\(RuntimeError: .* at .*/own_nets.py:\d+\); correct that line, or change .*size"),
    ],
)
def test_a_mistake_in_ones_own_forward_is_said_with_its_line(model, complaint):
    """The first was called a fault of the project; for the second, the size of the views was blamed alone."""
    with pytest.raises(Refused, match=rf"^\w+ cannot take 2 images of 16x16 at a time {complaint}"):
        check_network(build(model), (16, 16))
    with pytest.raises(Refused, match=rf"^\w+ rejects images of \[16, 16\] {complaint}"):
        FeatureTaps(build(model), {"stem"}).shapes((16, 16))


def test_what_answers_otherwise_than_it_says():
    with pytest.raises(Refused, match="Small answers with 7 logits where 3 classes are asked for; have it take"):
        check_network(build("own_nets:deaf"), (16, 16))

    class Halves(nn.Module):
        num_classes = 3

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward_features(self, x):
            return x

        def forward_head(self, x):
            return self.fc(x.mean((2, 3)))

        def forward(self, x):
            return 2 * self.forward_head(self.forward_features(x))

    with pytest.raises(Refused, match=r"Halves: forward_head\(forward_features\(images\)\) is not forward\(images\)"):
        check_network(Halves(), (16, 16))

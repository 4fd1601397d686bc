"""What a network costs, of one whose figures are known by hand."""

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcore.cost import deployed_bytes, deployment_cost, multiply_adds


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4 * 4, 10)
    )


def test_multiply_adds_of_a_convolution_and_a_matrix():
    assert multiply_adds(network(), (4, 4)) == 4 * 4 * 8 * 3 * 9 + 8 * 4 * 4 * 10


def test_bytes_include_running_statistics():
    parameters = 8 * 27 + 2 * 8 + 128 * 10 + 10
    assert deployed_bytes(network()) == 4 * (parameters + 2 * 8) + 8  # and the count of batches, an int64
    assert deployment_cost(network(), (4, 4), pytest.fail)["parameters"] == parameters


def test_counting_leaves_the_mode_alone():
    made = network().train()
    multiply_adds(made, (4, 4))
    assert made.training


class Scaled(nn.Module):
    """A convolution whose input is scaled by a submodule that is handed a parameter, as timm's CaiT does."""

    class Multiply(nn.Module):
        def forward(self, scale: Tensor, images: Tensor) -> Tensor:
            return scale * images

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.multiply, self.conv = self.Multiply(), nn.Conv2d(3, 8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(self.multiply(self.scale, images))


def test_a_submodule_that_is_handed_a_parameter_is_counted():
    """pytorch#134242: "Expected gradient function to be set"."""
    assert multiply_adds(Scaled(), (4, 4)) == 4 * 4 * 8 * 3


@pytest.mark.parametrize(("name", "size"), [("test_vit3", 160), ("pit_ti_distilled_224", 224)])
def test_families_that_do_so_are_counted(name, size):
    assert multiply_adds(timm.create_model(name, num_classes=3), (size, size)) > 1e6


def test_a_network_that_cannot_be_counted_keeps_its_other_figures():
    class Fails(Scaled):
        def forward(self, images: Tensor) -> Tensor:
            raise ValueError("not counted\nhere")

    said: list[str] = []
    cost = deployment_cost(Fails(), (4, 4), said.append)
    assert cost == {"parameters": 3 + 32, "megabytes": 4 * 35 / 1e6}
    assert said == ["the student's multiply-adds are left out (ValueError: not counted here)"]

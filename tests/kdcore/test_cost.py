"""What a network costs, of one whose figures are known by hand."""

from torch import nn

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
    assert deployment_cost(network(), (4, 4))["parameters"] == parameters


def test_counting_leaves_the_mode_alone():
    made = network().train()
    multiply_adds(made, (4, 4))
    assert made.training

"""Validation counts every image once, for any number of images and ranks."""

import numpy as np
import pytest
import torch

from cluster.passes import every_image_once
from cluster.rank import Rank, seed_micro_batch


@pytest.mark.parametrize("num_images", [1, 2, 3, 127, 128, 129, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_image_once(num_images, world_size):
    """Also where there are fewer images than ranks, and where no batch divides them."""
    requests = [
        request.sample_ids
        for number in range(world_size)
        for request in every_image_once(num_images, Rank(number, world_size, torch.device("cpu")), 128)
    ]
    assert all(0 < len(ids) <= 128 for ids in requests)
    assert np.array_equal(np.concatenate(requests), np.arange(num_images))


def test_randomness_of_a_micro_batch_is_a_function_of_its_place():
    def draw(*place: int) -> torch.Tensor:
        seed_micro_batch(*place)
        return torch.rand(4)

    first = draw(3, 7, 1)
    torch.rand(100)
    assert torch.equal(first, draw(3, 7, 1))
    for other in ((3, 7, 0), (3, 8, 1), (4, 7, 1)):
        assert not torch.equal(first, draw(*other))

"""What is said before the first step."""

import pytest

from cluster.batches import Batches
from cluster.recipe.reading import parse
from cluster.training.advice import unseen_images
from cluster.training.launch import launch


@pytest.mark.parametrize(
    ("num_images", "batch_size", "num_workers", "said"),
    [
        (
            360,
            256,
            1,
            "1 step of 256 images and leaves out 104 of 360, others each time; train.batch_size=180 leaves out 0, "
            "train.last_batch=keep leaves out none",
        ),
        (360, 256, 8, "train.batch_size=360 leaves out 0"),
        (1_281_167, 256, 8, None),
        (48, 16, 2, None),
        (45, 8, 2, "5 steps of 8 images and leaves out 5 of 45, others each time; train.last_batch=keep"),
        (46, 8, 4, "5 steps of 8 images and leaves out 6 of 46, others each time"),
    ],
)
def test_images_that_an_epoch_leaves_out(num_images, batch_size, num_workers, said):
    found = unseen_images(Batches(num_images, batch_size, num_workers), num_workers)
    assert found is None if said is None else said in found
    assert unseen_images(Batches(num_images, batch_size, num_workers, keeps_last=True), num_workers) is None


def test_a_named_batch_is_shared_by_the_workers_and_better():
    for num_images in range(20, 400, 7):
        for batch_size in (8, 32, 64):
            text = unseen_images(Batches(num_images, batch_size, 4), 4) if num_images >= batch_size else None
            if text and "train.batch_size=" in text:
                size = int(text.partition("train.batch_size=")[2].partition(" ")[0])
                assert size % 4 == 0
                assert num_images % size <= 0.02 * num_images < num_images % batch_size


def test_a_run_says_it(recipe):
    """48 pictures in batches of 20: 8 wait for another epoch, too few for five micro-batches of two."""
    heard: list[str] = []
    config = parse(recipe(scaling__num_workers=0, train__batch_size=20, train__epochs=1, train__micro_batch=4))
    launch(config, watch=lambda state, messages: heard.extend(messages))
    assert (
        "an epoch has 2 steps of 20 images and leaves out 8 of 48, others each time; train.batch_size=16 leaves out 0"
        in heard
    )

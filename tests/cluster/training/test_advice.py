"""What is said before the first step."""

import re
from itertools import product

import pytest

from cluster.batches import Batches
from cluster.recipe.config import RunConfig
from cluster.recipe.reading import parse
from cluster.recipe.rules import check_micro_batches_fill_the_batch, check_workers_share_the_batch
from cluster.training.advice import unseen_images
from cluster.training.launch import launch
from kdcore.errors import Refused


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
    found = unseen_images(Batches(num_images, batch_size, num_workers))
    assert found is None if said is None else said in found
    assert unseen_images(Batches(num_images, batch_size, num_workers, keeps_last=True)) is None


@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize(("micro_batch", "num_workers"), [(None, 0), (None, 4), (8, 0), (10, 1), (8, 3), (2, 4)])
def test_a_batch_that_is_named_is_accepted_and_better(micro_batch, num_workers, mixes, recipe):
    """It was refused where the recipe fixes the micro-batch: by the advice for this run, and by the refusal to keep."""
    base = parse(recipe(views__mixup_alpha=0.2) if mixes else recipe())
    made = base.model_copy(update={"scaling": base.scaling.model_copy(update={"num_workers": num_workers})})
    named = 0
    for num_images, batch_size, keep in product(range(30, 400, 7), (24, 40, 48, 80), ("drop", "keep")):
        if num_images < batch_size or batch_size % (micro_batch or 1):
            continue
        changes = {"batch_size": batch_size, "micro_batch": micro_batch, "last_batch": keep}
        config = made.model_copy(update={"train": base.train.model_copy(update=changes)})
        for change in re.findall(r"train\.(\w+)=(\w+)", advice(config, num_images)):
            named += 1
            followed = changes | {change[0]: int(change[1]) if change[1].isdigit() else change[1]}
            better = config.model_copy(update={"train": base.train.model_copy(update=followed)})
            check_micro_batches_fill_the_batch(better)
            check_workers_share_the_batch(better)
            batches = Batches.of(better, num_images)
            assert batches.keeps_last or keep == "keep" or batches.num_left <= 0.02 * num_images
    assert named > 20


def advice(config: RunConfig, num_images: int) -> str:
    """What is said of images that are left out, or of a last batch that cannot be kept; nothing where all is well."""
    try:
        return unseen_images(Batches.of(config, num_images)) or ""
    except Refused as error:
        return str(error).partition(";")[2]


def test_a_run_says_it(recipe):
    """48 pictures in batches of 20: 8 wait for another epoch, too few for five micro-batches of two."""
    heard: list[str] = []
    config = parse(recipe(scaling__num_workers=0, train__batch_size=20, train__epochs=1, train__micro_batch=4))
    launch(config, watch=lambda state, messages: heard.extend(messages))
    assert (
        "an epoch has 2 steps of 20 images and leaves out 8 of 48, others each time; train.batch_size=16 leaves out 0"
        in heard
    )

"""What a run says about itself before its first step, where a user would want to know."""

from __future__ import annotations

from cluster.batches import Batches

MAX_SHARE_LEFT_OUT = 0.05  # share of the images left out per epoch above which a run says so
SMALL_SHARE_LEFT_OUT = 0.02  # share that a better batch size may leave out


def unseen_images(batches: Batches) -> str | None:
    """Return how many images an epoch of whole batches leaves out, and what leaves out fewer; None for few.

    It names the nearest batch size that the recipe could have, and the field with which none is left out.
    """
    num_images, batch_size, left = batches.num_images, batches.batch_size, batches.num_left
    if batches.keeps_last or left <= MAX_SHARE_LEFT_OUT * num_images:
        return None
    steps = num_images // batch_size
    said = (
        f"an epoch has {steps} step{'s' if steps > 1 else ''} of {batch_size} images and leaves out {left:,} of "
        f"{num_images:,}, others each time"
    )
    ways = ["train.last_batch=keep leaves out none"] if batches.shares_last else []
    for other in batches.others():
        if other.batch_size >= batch_size / 2 and other.num_left <= SMALL_SHARE_LEFT_OUT * num_images:
            ways.insert(0, f"train.batch_size={other.batch_size} leaves out {other.num_left:,}")
            break
    return f"{said}; {', '.join(ways)}" if ways else said

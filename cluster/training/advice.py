"""What a run says about itself before its first step, where a person would want to know."""

from __future__ import annotations

MUCH = 0.05  # share of the images that an epoch leaves out, from which on it is said
LITTLE = 0.02  # share that a better size of batch may leave out


def unseen_images(num_images: int, batch_size: int, num_workers: int) -> str | None:
    """Return how many images an epoch of whole batches leaves out, with a batch that leaves out fewer; None for few.

    The nearest such size is named, which the workers can share evenly.
    """
    left = num_images % batch_size
    if left <= MUCH * num_images:
        return None
    steps = num_images // batch_size
    said = (
        f"an epoch has {steps} step{'s' if steps > 1 else ''} of {batch_size} images and leaves out {left:,} of "
        f"{num_images:,}, others each time"
    )
    shared = range(num_workers, min(num_images, 2 * batch_size) + 1, num_workers)
    fitting = [size for size in shared if size >= batch_size / 2 and num_images % size <= LITTLE * num_images]
    if not fitting:
        return said
    better = min(fitting, key=lambda size: (abs(size - batch_size), size))
    return f"{said}; train.batch_size={better} leaves out {num_images % better:,}"

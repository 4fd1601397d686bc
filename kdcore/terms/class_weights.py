"""Class weights: what an image's loss is multiplied by, for classes that differ in size or in importance."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from kdcore.errors import Refused, shortened
from kdcore.terms.base import TermContext

ClassWeights = Literal["balanced"] | dict[str, float]


def class_weight_vector(weights: ClassWeights, context: TermContext) -> Tensor:
    """Return the weight of every class [K] float32.

    `balanced`: N / (K n_k) for a class of n_k of the N training images, as in scikit-learn: their mean over the
    images is 1 where each has one label. A mapping names classes; those that it does not name weigh 1. Refused for an
    unknown class, and for a negative weight.
    """
    if isinstance(weights, Mapping):
        return _named(weights, context.classes, "class_weights")
    counts = _counts(context, "class_weights")
    return (context.num_samples / (context.num_classes * counts)).float()


def positive_weight_vector(weights: ClassWeights, context: TermContext) -> Tensor:
    """Return the factor of every class's loss on images that show it: [K] float32.

    `balanced`: (N - n_k) / n_k. A mapping is read, and refused, as by `class_weight_vector`.
    """
    if isinstance(weights, Mapping):
        return _named(weights, context.classes, "positive_weights")
    counts = _counts(context, "positive_weights")
    return ((context.num_samples - counts) / counts).float()


def _counts(context: TermContext, field: str) -> Tensor:
    """Return the number of training images that show each class [K] float64. Refused if a class has none."""
    assert context.class_counts is not None, "the images have labels"
    if not bool((context.class_counts > 0).all()):
        number = int((context.class_counts == 0).nonzero()[0])
        name = context.classes[number] if context.classes else str(number)
        raise Refused(f"{field}: balanced, but class {name!r} has no training image; add some, or name the weights")
    return context.class_counts.double()


def _named(weights: Mapping[str, float], classes: tuple[str, ...], field: str) -> Tensor:
    """Return the weights of named classes, 1 for the others."""
    if not weights:
        raise Refused(f"{field} names no class; name some, such as {{{classes[0]}: 2}}, or leave it out")
    vector = torch.ones(len(classes))
    for name, weight in weights.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3) or classes[:3]
            raise Refused(f"{field}: there is no class {shortened(name)!r}; did you mean {', '.join(near)}?")
        if weight < 0:
            raise Refused(f"{field}: {name!r} has weight {weight:g}; give 0 or more")
        vector[classes.index(name)] = weight
    return vector

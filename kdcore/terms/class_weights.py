"""What an image's loss is multiplied by for its class's sake, where classes differ in size or in worth."""

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

    `balanced`: N / (K n_k) for a class of n_k of the N training images, as scikit-learn has it: their mean over the
    images is 1. A mapping names classes; those that it does not name weigh 1. Refused for a class that is not there,
    and for a negative weight.
    """
    if isinstance(weights, Mapping):
        return _named(weights, context.classes)
    assert context.sample_labels is not None, "the images have labels"
    counts = torch.bincount(context.sample_labels, minlength=context.num_classes)
    if not bool((counts > 0).all()):
        number = int((counts == 0).nonzero()[0])
        name = context.classes[number] if context.classes else str(number)
        raise Refused(
            f"class_weights: balanced, but class {name!r} has no training image; add some, or name the weights"
        )
    return (len(context.sample_labels) / (context.num_classes * counts.double())).float()


def _named(weights: Mapping[str, float], classes: tuple[str, ...]) -> Tensor:
    """Return the weights of named classes, 1 for the others."""
    vector = torch.ones(len(classes))
    for name, weight in weights.items():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, n=3) or classes[:3]
            raise Refused(f"class_weights: there is no class {shortened(name)!r}; did you mean {', '.join(near)}?")
        if weight < 0:
            raise Refused(f"class_weights: {name!r} has weight {weight:g}; give 0 or more")
        vector[classes.index(name)] = weight
    return vector

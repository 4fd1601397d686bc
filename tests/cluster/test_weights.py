"""The fingerprint of weights: pinned for good, of what they are and are called, whatever file they lie in."""

from __future__ import annotations

import torch

from cluster.weights import tensors_fingerprint

TENSORS = {"a": torch.tensor([1.0, -2.5]), "b": torch.tensor(7)}
PINNED = "956d38cfe50c71ec456e794e5630427916ada770f399bdd4f00ef1a6b9fa6aba"


def test_it_is_pinned_in_any_order_of_names_and_of_memory() -> None:
    strided = torch.tensor([[1.0, 0.0], [-2.5, 0.0]])[:, 0]
    assert tensors_fingerprint(TENSORS) == PINNED
    assert tensors_fingerprint({"b": TENSORS["b"], "a": strided}) == PINNED


def test_names_types_shapes_and_bits_count() -> None:
    a, b = TENSORS.values()
    others = [{"c": a, "b": b}, {"a": a.view(torch.int32), "b": b}, {"a": a[None], "b": b}, {"a": -a, "b": b}]
    assert PINNED not in map(tensors_fingerprint, others)

"""Feature maps in fewer channels: the principal directions of a teacher's features, fitted once, undone on reading.

    features ~ mean + basis^T coefficients        coefficients = basis (features - mean)

Channels of a trained network are strongly correlated, so a fraction of them keeps most of the variance; how much is
lost is measured on views that the directions were not fitted to. Methods see features of the original width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Projection:
    """mean [D]; basis [n,D], its rows orthonormal. The channels are the last axis of its inputs."""

    mean: Tensor
    basis: Tensor

    def project(self, features: Tensor) -> Tensor:
        """[...,D] -> coefficients [...,n]."""
        return (features.float() - self.mean) @ self.basis.T

    def restore(self, coefficients: Tensor) -> Tensor:
        """[...,n] -> [...,D]: the nearest point in the span."""
        return coefficients @ self.basis + self.mean

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Projection:
        return cls(tensors["mean"], tensors["basis"])


class ChannelMoments:
    """Sums over all positions of all samples, from which the principal directions follow; in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | None = None
        self.products: Tensor | None = None

    def add(self, features: Tensor) -> None:
        """Add the features [...,D]."""
        flat = features.double().flatten(0, -2)
        total, products = flat.sum(dim=0), flat.T @ flat
        self.count += len(flat)
        self.total = total if self.total is None else self.total + total
        self.products = products if self.products is None else self.products + products

    def projection(self, components: int) -> Projection:
        """Return the projection onto the `components` directions of largest variance."""
        assert self.total is not None, "features come first"
        assert self.products is not None, "features come first"
        mean = self.total / self.count
        covariance = self.products / self.count - mean.outer(mean)
        directions = torch.linalg.eigh(covariance).eigenvectors.T.flip(0)[:components]
        # An eigenvector's sign is the solver's choice; fix it, so that a cache has the same bytes wherever it is built.
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        return Projection(mean.float(), (directions * largest.sign()).float())


class LostVariance:
    """The share of the features' variance that a projection loses: sum |x - restored|^2 / sum |x - mean|^2."""

    def __init__(self, projection: Projection) -> None:
        self.projection = projection
        self.lost = self.present = 0.0

    def add(self, features: Tensor) -> None:
        """Add the error on features [...,D]."""
        features = features.float()
        restored = self.projection.restore(self.projection.project(features))
        self.lost += float((features - restored).double().square().sum())
        self.present += float((features - self.projection.mean).double().square().sum())

    @property
    def share(self) -> float:
        return self.lost / max(self.present, 1e-30)

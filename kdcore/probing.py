"""What frozen features tell about classes, and how alike two networks see images, without the networks' classifiers.

All functions take features [N,D] of images in evaluation; only a linear probe is trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEIGHBOURS = 20
TEMPERATURE = 0.07
CHUNK = 1024  # queries whose similarities to all others are held at a time


def knn_logits(bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """Return the votes [M,K] of the nearest neighbours of queries [M,D] among a bank [N,D] with labels [N].

    A neighbour of cosine similarity s votes for its class with exp(s / TEMPERATURE). Source: Wu et al., "Unsupervised
    Feature Learning via Non-Parametric Instance Discrimination", arXiv 1805.01978; k and temperature as in DINO, arXiv
    2104.14294.
    """
    bank, votes = F.normalize(bank.double(), dim=1), []
    for chunk in queries.split(CHUNK):
        similarity, nearest = (F.normalize(chunk.double(), dim=1) @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        found = torch.zeros(len(chunk), num_classes, dtype=torch.float64, device=bank.device)
        votes.append(found.scatter_add_(1, labels[nearest], (similarity / TEMPERATURE).exp()))
    return torch.cat(votes)


def linear_probe_logits(
    bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, weight_decay: float = 1e-3
) -> Tensor:
    """Return the logits [M,K] of queries by a logistic regression fitted to a bank [N,D] with labels [N].

    Features are standardised by the bank's mean and deviation; L-BFGS from zero minimises the mean cross-entropy plus
    weight_decay / 2 times the squared norm of the weights, which has one minimum.
    """
    mean, deviation = bank.double().mean(0), bank.double().std(0).clamp_min(1e-6)
    inputs = (bank.double() - mean) / deviation
    linear = nn.Linear(inputs.shape[1], num_classes, dtype=torch.float64, device=bank.device)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(linear(inputs), labels) + weight_decay / 2 * linear.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        found: Tensor = linear((queries.double() - mean) / deviation)
    return found


def neighbour_agreement(first: Tensor, second: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Return the share of an image's nearest neighbours that is the same by two networks' features [N,D1], [N,D2].

    The mean over all images, by cosine similarity, without the image itself; with few images, at most a tenth of them
    count as neighbours. 1 for equal features; for unrelated ones about neighbours / (N - 1).
    """
    neighbours = max(1, min(neighbours, (len(first) - 1) // 10))
    units = [F.normalize(features.double(), dim=1) for features in (first, second)]
    shared = 0
    for start in range(0, len(first), CHUNK):
        rows = torch.arange(start, min(start + CHUNK, len(first)), device=first.device)
        nearest = []
        for unit in units:
            similarity = unit[rows] @ unit.T
            similarity[torch.arange(len(rows), device=rows.device), rows] = -2.0
            nearest.append(similarity.topk(neighbours, dim=1).indices)
        shared += int((nearest[0][:, :, None] == nearest[1][:, None, :]).sum())
    return shared / (neighbours * len(first))


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the share of rows [M,K] whose largest value is at the label [M]."""
    return float((logits.argmax(dim=1) == labels).double().mean())

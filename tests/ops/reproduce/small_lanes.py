"""Methods of small runs side by side, and the losses of a run's steps."""

from __future__ import annotations

import torch

from ops.reproduce.lane import Lane
from ops.reproduce.lanes import Flight

CPU = torch.device("cpu")
NETWORK = {"model": "cifar_resnet8", "args": {"widths": [8, 8, 8, 16]}}
METHODS = {
    "dkd": [
        {"term": "ce", "weight": 1},
        {"term": "dkd", "weight": 1, "warmup_epochs": 1, "temperature": 4, "non_target_weight": 2},
    ],
    "feature_only": [
        {"term": "ce", "weight": 1},
        {"term": "feature_only", "weight": 1, "pairs": [{"student": "layer2", "teacher": "layer2"}]},
    ],
    "simkd": [{"term": "simkd", "weight": 1}],
    "alone": [{"term": "ce", "weight": 1}],
}


def steps(lane: Lane, num: int) -> list[float]:
    flight = Flight([lane])
    return [float(flight.step()[0]) for _ in range(num)]

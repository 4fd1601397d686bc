"""The methods that are trained from a cache, the losses of a run by them, and a teacher that changes."""

from typing import Any

import safetensors.torch
import torch

from cluster.assembly import assemble
from cluster.rank import Rank
from cluster.recipe.config import RunConfig

CPU = torch.device("cpu")
PAIRS = [{"student": "layer2", "teacher": "layer2"}]
EXACT = {"cache__dtype": "float32", "cache__features": "float32"}
KD = [{"term": "ce", "weight": 0.5}, {"term": "kd", "weight": 0.5, "temperature": 4.0}]
METHODS = {
    "kd": {"method": KD},
    "wttm": {"method": [{"term": "ce", "weight": 1.0}, {"term": "wttm", "weight": 1.6, "gamma": 0.8}]},
    "simkd": {"method": [{"term": "simkd", "weight": 1.0}], "student__classifier": "reused"},
    "feature_only": {
        "method": [{"term": "ce", "weight": 1.0}, {"term": "feature_only", "weight": 1.0, "pairs": PAIRS}]
    },
    "nd": {"method": [*KD, {"term": "nd", "weight": 1.0}]},
    "wkd": {
        "method": [
            {"term": "ce", "weight": 1.0},
            {"term": "wkd_l", "weight": 10.0, "temperature": 2.0, "decay_from_epoch": 1},
            {"term": "wkd_f", "weight": 0.1},
        ]
    },
    "kdiga": {"method": [{"term": "ce", "weight": 1.0}, {"term": "kdiga", "weight": 1.0}]},
}


def losses(config: RunConfig, learn: bool = True) -> list[float]:
    """Of every micro-batch of a run; without learning, the student stays as it is."""
    run = assemble(config, Rank(0, 1, CPU))
    distiller = run.distiller().train()
    optimizer = torch.optim.SGD(distiller.parameters(), 0.05 if learn else 0.0)
    found = []
    for batch in run.train_batches(0):
        torch.manual_seed(0)  # dropout
        output = distiller(batch)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(output.loss.detach()))
    return found


def change_weights(teacher: dict[str, Any]) -> None:
    tensors = safetensors.torch.load_file(teacher["checkpoint"])
    tensors["conv1.weight"][0, 0, 0, 0] += 1e-3
    safetensors.torch.save_file(tensors, teacher["checkpoint"])

"""Distillers of small networks for tests, with a batch, and a term that remembers what it was shown."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import Tensor, nn

from kdcore.batch import Batch, Needs
from kdcore.distiller import Distiller
from kdcore.online_teacher import OnlineTeacher
from kdcore.terms import Term, TermContext, TermInputs, parse_term

K, SIZE = 5, (16, 16)
CE = {"term": "ce", "weight": 1}
KD = {"term": "kd", "weight": 1, "temperature": 4}
FEATURES = {
    "term": "feature_mse",
    "weight": 1,
    "pairs": [{"student": "layer2", "teacher": "layer2"}],
}


class Probe(Term):
    """A term that remembers what it was shown. Its name has no default, so that it stays out of the registry."""

    declared: Any = Needs()
    seen: Any = None

    def needs(self) -> Needs:
        return self.declared

    def build(self, context: TermContext) -> nn.Module:
        self.seen["context"] = context
        return super().build(context)

    def loss(self, inputs: TermInputs) -> Tensor:
        self.seen["inputs"] = inputs
        return inputs.student_logits.square().mean(dim=1)


def probe(**needs: Any) -> Probe:
    return Probe(term="probe", weight=1, declared=Needs(**needs), seen={})


def network(seed: int, name: str = "cifar_resnet8") -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=K)


def make(*method: Any, teacher: nn.Module | None = None, renormalise: Any = None, **kwargs: Any) -> Distiller:
    """A distiller of a fresh cifar_resnet8 by the method's terms."""
    terms = [parse_term(term) for term in method]
    needs = Needs.union(term.needs() for term in terms if term.weight > 0)
    online = None if teacher is None else OnlineTeacher(teacher, needs, renormalise)
    return Distiller(network(0), terms, image_size=SIZE, num_samples=100, teacher=online, **kwargs)


def batch(soft: bool = False, **kwargs: Any) -> Batch:
    torch.manual_seed(1)
    labels = torch.rand(4, K).softmax(dim=1) if soft else torch.tensor([0, 3, 1, 4])
    images = torch.randn(4, 3, *SIZE).to(memory_format=torch.channels_last)
    return Batch(images, labels, torch.tensor([7, 2, 9, 4]), torch.zeros(4, dtype=torch.int64), **kwargs)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}

"""Identities of the papers that need no training: by how much this project's losses and networks miss each."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor

import kdcore.networks  # noqa: F401  registers the networks with timm
from kdcore.batch import Batch, Needs
from kdcore.distiller import Distiller
from kdcore.online_teacher import OnlineTeacher
from kdcore.reused import ReusedHead, TeacherHead
from kdcore.terms import parse_term
from kdcore.terms.logits import kd
from kdcore.terms.ttm import ttm, wttm
from ops.facts import write

GAMMAS = (0.1, 0.3, 0.5, 0.8)
NUM_ROWS, NUM_CLASSES = 64, 20


def write_identities(folder: Path) -> Path:
    """Compute every identity, and write paper3_identities.json into the folder."""
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(NUM_ROWS, NUM_CLASSES), 4 * torch.randn(NUM_ROWS, NUM_CLASSES)
    found = [
        {
            "identity": "TTM = KD / temperature - (temperature - 1) (Renyi entropy of the student - entropy of the "
            "teacher), in nats",
            "error": max(decomposition(student, teacher, gamma) for gamma in GAMMAS),
            "source": "arXiv 2402.11148, section 3",
        },
        {
            "identity": "the gradient of WTTM is U (softmax(student) - softmax(gamma teacher))",
            "error": max(gradient_of_wttm(student, teacher, gamma) for gamma in GAMMAS),
            "source": "arXiv 2402.11148, section 4",
        },
        {
            "identity": "SimKD's student, given the teacher's map, answers with the teacher's logits",
            "error": reused_head(),
            "source": "arXiv 2203.14001, section 3",
        },
        {
            "identity": "feature_only: other labels, the same gradient of the backbone",
            "error": labels_at_the_backbone(),
            "source": "arXiv 2511.14981, its code",
        },
    ]
    content = {"gammas": GAMMAS, "rows": NUM_ROWS, "classes": NUM_CLASSES, "identities": found}
    return write("paper3_identities", content, folder)


def decomposition(student: Tensor, teacher: Tensor, gamma: float) -> float:
    """Return how far TTM is from KD and the Renyi term: the largest difference over the rows, in nats.

    D(p_T || q) = T D(p_T || q_T) - (T - 1) (H_gamma(q) - H(p_T)), with T = 1 / gamma, q_T = softmax(student / T),
    p_T = softmax(teacher / T) and Renyi's entropy H_a(q) = log(sum_j q_j^a) / (1 - a); `kd` is T^2 D(p_T || q_T).
    """
    temperature = 1 / gamma
    q, p = student.double().softmax(1), (gamma * teacher.double()).softmax(1)
    renyi = q.pow(gamma).sum(1).log() / (1 - gamma)
    entropy = -(p * p.log()).sum(1)
    expected = kd(student, teacher, temperature).double() / temperature - (temperature - 1) * (renyi - entropy)
    return float((ttm(student, teacher, gamma).double() - expected).abs().max())


def gradient_of_wttm(student: Tensor, teacher: Tensor, gamma: float) -> float:
    """Return the largest difference of WTTM's gradient from its closed form, relative to the largest gradient."""
    logits = student.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(wttm(logits, teacher, gamma).sum(), logits)
    power = teacher.double().softmax(1).pow(gamma).sum(1, keepdim=True)
    expected = power * (student.double().softmax(1) - (gamma * teacher.double()).softmax(1))
    return float((gradient.double() - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def reused_head() -> float:
    """Return the largest difference of the logits, for EfficientNet-Lite0 and random images."""
    teacher = timm.create_model("tf_efficientnet_lite0", num_classes=NUM_CLASSES).eval()
    images = torch.randn(4, 3, 64, 64)
    student = ReusedHead(TeacherHead.of(teacher, (64, 64))).eval()
    return float((student(teacher.forward_features(images)) - teacher(images)).abs().max())  # type: ignore[operator]


def labels_at_the_backbone() -> float:
    """Return the largest change of the backbone's gradient when every label changes."""
    return float((backbone_gradient(labels=0) - backbone_gradient(labels=1)).abs().max())


def backbone_gradient(labels: int) -> Tensor:
    """Return the gradient of every weight of a feature-only student's backbone, where every label is `labels`."""
    torch.manual_seed(0)
    student, teacher = (timm.create_model("cifar_resnet8", num_classes=NUM_CLASSES) for _ in range(2))
    pairs = [{"student": f"layer{i}", "teacher": f"layer{i}"} for i in (1, 2, 3)]
    method = [{"term": "feature_only", "weight": 1.0, "pairs": pairs}, {"term": "ce", "weight": 1.0}]
    terms = [parse_term(term) for term in method]
    asked = OnlineTeacher(teacher, Needs.union(term.needs() for term in terms))
    distiller = Distiller(student, terms, image_size=(32, 32), num_samples=8, teacher=asked)
    ids = torch.arange(8)
    distiller(
        Batch(torch.randn(8, 3, 32, 32), torch.full_like(ids, labels), ids, torch.zeros_like(ids))
    ).loss.backward()
    backbone = [parameter for name, parameter in student.named_parameters() if not name.startswith("fc")]
    return torch.cat([parameter.grad.flatten() for parameter in backbone if parameter.grad is not None])

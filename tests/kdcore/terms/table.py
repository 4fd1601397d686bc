"""The table of all terms: the fields that each must be given, and inputs that hold what a term declares."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import torch

from kdcore.batch import Needs, TeacherOutputs
from kdcore.terms import TermContext, TermInputs, parse_term
from tests.kdcore.terms.restated import normal32 as normal

STAGES = [{"student": "stage1", "teacher": "stage1"}, {"student": "stage2", "teacher": "stage2"}]
TOKENS = {
    "pairs": [{"student": "blocks.0", "teacher": "blocks.0"}, {"student": "blocks.1", "teacher": "blocks.1"}],
    "deep": {"student": "norm", "teacher": "norm"},
}

# {term: its hyper-parameters}, the least that a recipe must give
TERMS: dict[str, dict] = {
    "ce": {},
    "kd": {"temperature": 4.0},
    "ttm": {"gamma": 0.2},
    "wttm": {"gamma": 0.2},
    "dkd": {"temperature": 4.0, "non_target_weight": 8.0},
    "nkd": {"non_target_weight": 1.0},
    "dist": {"temperature": 4.0},
    "lskd": {"temperature": 2.0},
    "feature_mse": {"pairs": STAGES},
    "feature_only": {"pairs": STAGES},
    "fitnet": {"pairs": STAGES[:1]},
    "simkd": {"student_tap": "projected"},
    "at": {"pairs": STAGES},
    "sp": {},
    "rkd": {},
    "pkt": {},
    "vid": {"pairs": STAGES},
    "reviewkd": {"pairs": STAGES},
    "nd": {},
    "crd": {"num_negatives": 8, "dim": 16},
    "vitkd": TOKENS,
    "diffkd": {"latent_channels": 12},
    "diffkd_logits": {},
    "kdiga": {},
    "spectral": {"pairs": STAGES},
    "itrd": {"alpha": 1.5},
    "rld": {"temperature": 4.0, "correlation_weight": 8.0},
    "mlkd": {},
    "wkd_l": {"temperature": 2.0},
    "wkd_f": {},
    "bce": {},
    "binary_kd": {},
}


B, K, N = 6, 5, 20
STUDENT_SHAPES = {
    "stage1": (8, 8, 8),
    "stage2": (16, 4, 4),
    "forward_features": (16, 4, 4),
    "projected": (24, 4, 4),
    "classifier_input": (16,),
    "blocks.0": (10, 8),
    "blocks.1": (10, 8),
    "norm": (10, 8),
}
TEACHER_SHAPES = {
    "stage1": (12, 8, 8),
    "stage2": (24, 4, 4),
    "forward_features": (24, 8, 8),
    "classifier_input": (24,),
    "blocks.0": (10, 12),
    "blocks.1": (10, 12),
    "norm": (10, 12),
}


def make(name: str):
    """The term and its module, with weights that are the same in every test."""
    torch.manual_seed(0)
    term = parse_term({"term": name, "weight": 1.0, **TERMS[name]})
    context = TermContext(
        student_shapes={tap: torch.Size(shape) for tap, shape in STUDENT_SHAPES.items()},
        teacher_shapes={tap: torch.Size(shape) for tap, shape in TEACHER_SHAPES.items()},
        num_classes=K,
        num_samples=N,
        class_means={"classifier_input": normal(3, K, 24)},
        class_similarity=normal(4, K, K).sigmoid(),
        sample_labels=torch.arange(N) % K,
        class_counts=torch.full((K,), N // K),
    )
    return term, term.build(context)


def declared(needs: Needs, seed: int = 1) -> TermInputs:
    """Inputs that hold what `needs` declares and nothing else (logits, labels and the epoch are always there)."""
    student = {tap: normal(seed, B, *STUDENT_SHAPES[tap]).requires_grad_(True) for tap in sorted(needs.student_taps)}
    teacher = TeacherOutputs(
        logits=normal(seed + 1, B, K) if needs.teacher_logits else None,
        features={tap: normal(seed + 2, B, *TEACHER_SHAPES[tap]) for tap in sorted(needs.teacher_taps)},
        input_gradient=normal(seed + 3, B, 3, 4, 4) if needs.teacher_input_gradient else None,
    )
    return TermInputs(
        labels=torch.tensor([1, 4, 0, 2, 2, 3]),
        student_logits=normal(seed + 4, B, K).requires_grad_(True),
        teacher=teacher,
        student_features=student,
        sample_ids=torch.tensor([7, 3, 19, 0, 11, 12]) if needs.sample_ids else None,
        student_input_gradient=normal(seed + 5, B, 3, 4, 4).requires_grad_(True)
        if needs.student_input_gradient
        else None,
        epoch=2.5,
    )


def mapped(value, change):
    """The same inputs with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(x, change) for key, x in value.items()}
    if is_dataclass(value):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value

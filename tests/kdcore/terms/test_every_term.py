"""What holds of every registered term. A new term without a row here fails."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from pydantic import ValidationError

from kdcore.batch import Needs, TeacherOutputs
from kdcore.section import meaning
from kdcore.terms import REGISTRY, Stateless, TermContext, TermInputs, parse_term
from tests.kdcore.terms.restated import normal32 as normal

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

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


def joined(first: TermInputs, other: TermInputs, keep: int) -> TermInputs:
    """The first `keep` samples of `first`, followed by the rest of `other`; the labels and ids are equal in both."""
    others: list[torch.Tensor] = []
    mapped(other, others.append)
    others.reverse()
    return mapped(first, lambda x: torch.cat([x[:keep], others.pop()[keep:]]))


def test_every_registered_term_is_in_the_table():
    assert set(TERMS) == set(REGISTRY)


@pytest.mark.parametrize("name", TERMS)
def test_gives_one_value_per_sample_from_what_it_declares(name):
    term, module = make(name)
    inputs = declared(term.needs())
    value = module(inputs)
    assert value.shape == (B,)
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    value.mean().backward()
    read = list(inputs.student_features.values())
    read += [x for x in (inputs.student_input_gradient,) if x is not None]
    for tensor in read or [inputs.student_logits]:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0
    for weight_name, weight in module.named_parameters():
        assert weight.grad is not None, f"{weight_name} is trained by nothing"


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_is_float32_under_autocast(name, device):
    term, module = make(name)
    inputs = mapped(declared(term.needs()), lambda x: x.to(device))
    with torch.autocast(device, torch.bfloat16):
        value = module.to(device)(inputs)
    assert value.dtype == torch.float32
    assert torch.isfinite(value).all()
    value.mean().backward()


@pytest.mark.parametrize("name", TERMS)
def test_batch_coupled_says_whether_a_sample_depends_on_the_others(name):
    term, module = make(name)
    inputs = declared(term.needs())
    module(inputs)  # crd estimates its constants once
    module.eval()  # batch norms are a coupling of the networks, not of the loss
    before, after = module(inputs), module(joined(inputs, declared(term.needs(), seed=50), keep=2))
    assert torch.allclose(before[:2], after[:2], rtol=1e-5, atol=1e-6) != term.batch_coupled


def relaid(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers with the channels last in memory, as what came from tokens, or channels-last, lies."""
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.ndim > 2 else tensor


@pytest.mark.parametrize("narrow", [False, True], ids=["square maps", "maps of one column"])
@pytest.mark.parametrize("name", TERMS)
def test_gradients_do_not_depend_on_where_tensors_lie(name, narrow, monkeypatch):
    """torch's batch norm on a CPU gave wrong ones for maps of one column: see `kdcore.reused.TokenBatchNorm`."""
    if narrow:
        for shapes in (STUDENT_SHAPES, TEACHER_SHAPES):
            for tap, shape in list(shapes.items()):
                monkeypatch.setitem(shapes, tap, (*shape[:2], 1) if len(shape) == 3 else shape)
    gradients = []
    for student, teacher in ((False, False), (True, True), (True, False), (False, True)):
        term, module = make(name)
        inputs = declared(term.needs())
        read = [*inputs.student_features.values(), inputs.student_logits]
        laid = mapped(inputs, relaid if student else lambda x: x)
        laid = replace(laid, teacher=mapped(inputs.teacher, relaid if teacher else lambda x: x))
        module(laid).mean().backward()
        weights = [weight.grad for weight in module.parameters()]
        gradients.append([x for x in (*(tensor.grad for tensor in read), *weights) if x is not None])
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_survives_a_round_trip_through_plain_data(name):
    term, _ = make(name)
    assert parse_term(term.model_dump(mode="json")) == term


@pytest.mark.parametrize("name", TERMS)
def test_a_weight_must_be_given_and_unknown_fields_are_refused(name):
    with pytest.raises(ValidationError, match="weight"):
        parse_term({"term": name, **TERMS[name]})
    with pytest.raises(ValidationError, match="lambda"):
        parse_term({"term": name, "weight": 1, "lambda": 1, **TERMS[name]})


@pytest.mark.parametrize("name", ["crd", "itrd"])
def test_embeddings_whose_products_are_the_loss_are_not_rounded(name):
    """Autocast, which a run's networks are under, changes no bit."""
    term, module = make(name)
    inputs = declared(term.needs())
    plain = module.eval()(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(inputs), plain)


@pytest.mark.parametrize("name", [name for name in TERMS if isinstance(make(name)[1], Stateless)])
def test_terms_without_weights_read_any_float_type(name):
    term, module = make(name)
    inputs = declared(term.needs())
    half = mapped(inputs, lambda x: x.half() if x.is_floating_point() else x)
    torch.testing.assert_close(module(half).mean(), module(inputs).mean(), rtol=1e-3, atol=1e-6)


REFUSED = [
    ("kd", {"temperature": 0}),
    ("ttm", {"gamma": 0}),
    ("ttm", {"gamma": 1.5}),
    ("wttm", {"gamma": -0.1}),
    ("dkd", {"non_target_weight": -1}),
    ("nkd", {"temperature": -2}),
    ("dist", {"temperature": 0}),
    ("ce", {"label_smoothing": 1.0}),
    ("feature_mse", {"pairs": []}),
    ("feature_only", {"detach_head_at": "stage9"}),
    ("fitnet", {"pairs": STAGES}),
    ("vid", {"initial_variance": 0}),
    ("rkd", {"angle_weight": -1}),
    ("crd", {"temperature": 0}),
    ("crd", {"momentum": 1}),
    ("crd", {"negatives": "hard"}),
    ("vitkd", {"mask_ratio": 1}),
    ("diffkd", {"num_steps": 0}),
    ("diffkd", {"latent_channels": 0}),
    ("kd", {"weight": -1}),
    ("kd", {"decay_from_epoch": -1}),
    ("itrd", {"alpha": 0.5}),
    ("rld", {"confidence_temperature": 0}),
    ("mlkd", {"temperatures": []}),
    ("wkd_l", {"regularisation": 0}),
    ("wkd_l", {"iterations": 0}),
    ("wkd_f", {"grid": 0}),
    ("wkd_f", {"projector": "linear"}),
]


@pytest.mark.parametrize(("name", "fields"), REFUSED, ids=[f"{n}-{next(iter(f))}" for n, f in REFUSED])
def test_hyper_parameters_without_meaning_are_refused(name, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        parse_term({"term": name, "weight": 1, **TERMS[name], **fields})


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *[("ttm", "gamma"), ("wttm", "gamma"), ("dkd", "non_target_weight"), ("kd", "temperature")],
        *[("itrd", "alpha"), ("rld", "correlation_weight"), ("wkd_l", "temperature")],
    ],
)
def test_what_has_no_common_default_must_be_given(name, missing):
    fields = {key: value for key, value in TERMS[name].items() if key != missing}
    with pytest.raises(ValidationError, match=missing):
        parse_term({"term": name, "weight": 1, **fields})


@pytest.mark.parametrize("name", ["at", "sp", "rkd", "pkt", "spectral"])
def test_terms_over_pairs_sum_them(name):
    both = parse_term({"term": name, "weight": 1, "pairs": STAGES})
    inputs = declared(both.needs())
    alone = [parse_term({"term": name, "weight": 1, "pairs": [pair]}).loss(inputs) for pair in STAGES]
    torch.testing.assert_close(both.loss(inputs), alone[0] + alone[1])


@pytest.mark.parametrize("name", TERMS)
def test_every_field_says_what_it_is(name):
    """The docstring below a field is its meaning: what `python -m ops` prints, and what a schema holds."""
    term = REGISTRY[name]
    assert [field for field in term.model_fields if field != "term" and not meaning(term, field)] == []


def test_spectral_counts_only_where_the_teacher_is_right():
    guided, free = (
        parse_term({"term": "spectral", "weight": 1, "pairs": STAGES, "only_correct_teacher": flag})
        for flag in (True, False)
    )
    assert not free.needs().hard_labels
    inputs = declared(guided.needs())
    right = inputs.teacher.logits.argmax(dim=1) == inputs.labels
    assert 0 < right.sum() < B
    torch.testing.assert_close(guided.loss(inputs), torch.where(right, free.loss(inputs), 0.0))

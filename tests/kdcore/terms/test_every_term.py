"""What every registered term computes. A new term without a row in the table fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kdcore.terms import REGISTRY, Stateless, TermInputs, parse_term
from tests.kdcore.terms.table import STAGES, STUDENT_SHAPES, TEACHER_SHAPES, TERMS, B, declared, make, mapped

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
BATCH_COUPLED = {"sp", "rkd", "pkt", "dist", "mlkd", "itrd"}


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
def test_a_sample_depends_on_the_others_in_the_batch_coupled_terms_alone(name):
    term, module = make(name)
    inputs = declared(term.needs())
    module(inputs)  # crd estimates its constants once
    module.eval()  # batch norms are a coupling of the networks, not of the loss
    before, after = module(inputs), module(joined(inputs, declared(term.needs(), seed=50), keep=2))
    assert torch.allclose(before[:2], after[:2], rtol=1e-5, atol=1e-6) != (name in BATCH_COUPLED)


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


@pytest.mark.parametrize("name", ["at", "sp", "rkd", "pkt", "spectral"])
def test_terms_over_pairs_sum_them(name):
    both = parse_term({"term": name, "weight": 1, "pairs": STAGES})
    inputs = declared(both.needs())
    alone = [parse_term({"term": name, "weight": 1, "pairs": [pair]}).loss(inputs) for pair in STAGES]
    torch.testing.assert_close(both.loss(inputs), alone[0] + alone[1])


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

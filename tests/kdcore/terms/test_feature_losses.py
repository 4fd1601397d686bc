"""The losses on features: parity with plain restatements, invariants, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from kdcore.errors import Refused
from kdcore.terms.attention import at
from kdcore.terms.crd import nce
from kdcore.terms.features import aligned_maps, feature_mse, pool_larger
from kdcore.terms.kdiga import kdiga
from kdcore.terms.nd import nd
from kdcore.terms.relations import pkt, rkd, sp
from kdcore.terms.reviewkd import hcl
from kdcore.terms.spectral import dct, spectral
from kdcore.terms.vid import vid
from kdcore.terms.vitkd import generation, mimicking
from tests.kdcore.terms.restated import LABELS, cosine, each, normal
from tests.kdcore.terms.restated_features import (
    CLASS_MEANS,
    MASKED,
    VARIANCE,
    mean_square,
    plain_at,
    plain_generation,
    plain_hcl,
    plain_nce,
    plain_nd,
    plain_pkt,
    plain_rkd,
    plain_sp,
    plain_spectral,
    plain_vid,
    zero,
)

LOSSES = {
    "feature_mse": (feature_mse, (4, 3, 2, 2), (4, 3, 2, 2), each(lambda i, s, t: mean_square(s, t)), zero),
    "at": (at, (4, 3, 4, 4), (4, 5, 2, 2), each(plain_at), zero),
    "sp": (sp, (4, 3, 2, 2), (4, 5, 1, 1), plain_sp, zero),
    "rkd": (lambda s, t: rkd(s, t, 25.0, 50.0), (4, 3), (4, 6), plain_rkd, zero),
    "pkt": (pkt, (4, 3), (4, 6), plain_pkt, zero),
    "vid": (
        lambda s, t: vid(s, t, VARIANCE.to(t.dtype)),
        (4, 3, 2, 2),
        (4, 3, 2, 2),
        each(plain_vid),
        lambda t: VARIANCE.log().mean().item() / 2,
    ),
    "hcl": (hcl, (4, 2, 8, 8), (4, 2, 8, 8), each(plain_hcl), zero),
    "nd": (
        lambda s, t: nd(s, t, CLASS_MEANS.to(t.dtype), LABELS),
        (4, 6),
        (4, 6),
        each(plain_nd),
        lambda t: [1 - cosine(v, CLASS_MEANS[LABELS[i]].numpy()) for i, v in enumerate(t)],
    ),
    "kdiga": (kdiga, (4, 3, 2, 2), (4, 3, 2, 2), each(lambda i, s, t: math.sqrt(((s - t) ** 2).sum())), zero),
    "spectral": (spectral, (4, 3, 4, 5), (4, 2, 4, 5), each(plain_spectral), zero),
    "mimicking": (mimicking, (4, 3, 2), (4, 3, 2), each(lambda i, s, t: mean_square(s, t) * 6), zero),
    "generation": (
        lambda s, t: generation(s, t, MASKED, 0.5),
        (4, 3, 2),
        (4, 3, 2),
        each(plain_generation),
        zero,
    ),
    "nce": (
        lambda s, t: nce(s[:, 0], s[:, 1:], 1 / 20),
        (4, 6),
        (4, 6),
        each(plain_nce),
        lambda t: each(plain_nce)(t, t),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_contract(name, loss_property, loss_case):
    loss, student_shape, teacher_shape, restated, equal = LOSSES[name]
    student, teacher = normal(1, *student_shape), normal(2, *teacher_shape)
    if name == "nce":  # likelihoods
        student, teacher = student.exp(), teacher.exp()
    loss_case(loss, student, teacher, restated, equal).check(loss_property)


def test_mse_is_quadratic_and_a_mean():
    s, t = normal(1, 4, 3, 2, 2), normal(2, 4, 3, 2, 2)
    torch.testing.assert_close(feature_mse(2 * s, 2 * t), 4 * feature_mse(s, t))
    torch.testing.assert_close(feature_mse(torch.cat([s, s]), torch.cat([t, t])).mean(), feature_mse(s, t).mean())


def test_mse_of_float16_does_not_overflow():
    s = torch.full((2, 1000), 300.0, dtype=torch.float16)
    assert feature_mse(s, torch.zeros_like(s)).tolist() == [90000.0, 90000.0]


@pytest.mark.parametrize(("student", "teacher", "pooled"), [(8, 4, "student"), (4, 8, "teacher"), (4, 4, "neither")])
def test_the_larger_map_is_pooled(student, teacher, pooled):
    s, t = normal(1, 2, 3, student, student), normal(2, 2, 3, teacher, teacher)
    ps, pt = pool_larger(s, t)
    assert ps.shape[2:] == pt.shape[2:] == (4, 4)
    assert (ps is s) == (pooled != "student")
    assert (pt is t) == (pooled != "teacher")
    torch.testing.assert_close(ps.mean(dim=(2, 3)), s.mean(dim=(2, 3)))


def test_maps_across_each_other_are_refused():
    with pytest.raises(Refused, match="neither is the larger"):
        pool_larger(normal(1, 2, 3, 8, 2), normal(2, 2, 3, 4, 4))


def test_tokens_of_different_number_are_refused_and_equal_ones_kept():
    with pytest.raises(Refused, match="10 and 17"):
        aligned_maps(normal(1, 2, 10, 3), normal(2, 2, 17, 3))
    with pytest.raises(
        Refused, match=r"the student's tap is a map \[B,C,H,W\], the teacher's tokens \[B,N,D\]; choose"
    ):
        aligned_maps(normal(1, 2, 3, 4, 4), normal(2, 2, 17, 3))
    maps = aligned_maps(normal(1, 2, 10, 3), normal(2, 2, 10, 4))
    assert [list(m.shape) for m in maps] == [[2, 3, 10, 1], [2, 4, 10, 1]]


def test_attention_ignores_the_scale_of_a_map():
    s, t = normal(1, 2, 3, 4, 4), normal(2, 2, 5, 4, 4)
    torch.testing.assert_close(at(7 * s, t), at(s, t))


def test_relations_ignore_what_they_should():
    s, t = normal(1, 4, 3), normal(2, 4, 3)
    rotation = torch.linalg.qr(normal(3, 3, 3)).Q
    torch.testing.assert_close(rkd(5 * s @ rotation + 1, t, 25.0, 50.0), rkd(s, t, 25.0, 50.0))
    torch.testing.assert_close(sp(s @ rotation, t), sp(s, t))
    torch.testing.assert_close(pkt(5 * s @ rotation, t), pkt(s, t), rtol=1e-5, atol=1e-9)


def usual_rkd(s, t):
    return rkd(s, t, 25.0, 50.0)


@pytest.mark.parametrize("loss", [sp, pkt, usual_rkd, at, spectral])
def test_dead_features_give_finite_gradients(loss):
    shape = (4, 3) if loss in (sp, pkt, usual_rkd) else (4, 3, 2, 2)
    student = torch.zeros(shape, requires_grad=True)
    value = loss(student, torch.ones(shape))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", [sp, pkt, lambda s, t: rkd(s, t, 25.0, 50.0)])
def test_a_batch_of_one_has_no_relations(loss):
    with pytest.raises(Refused, match="1 sample"):
        loss(normal(1, 1, 3), normal(2, 1, 3))


def test_nd_is_0_for_a_long_student_on_its_class_direction():
    student = 9 * CLASS_MEANS[LABELS]
    torch.testing.assert_close(nd(student, normal(2, 4, 6), CLASS_MEANS, LABELS), torch.zeros(4, dtype=torch.float64))


def test_dct_is_orthonormal_and_knows_a_map_from_its_half_turn():
    maps = normal(1, 2, 4, 6)
    torch.testing.assert_close(dct(maps).square().sum(), maps.square().sum())
    features = normal(1, 2, 3, 4, 6)
    assert (spectral(features, features.flip(2, 3)) > 0.1).all()


def test_hcl_skips_grids_that_are_not_smaller():
    s, t = normal(1, 2, 3, 1, 1), normal(2, 2, 3, 1, 1)
    torch.testing.assert_close(hcl(s, t), feature_mse(s, t))


def test_gradients_at_images_of_two_sizes():
    """Their sizes are the recipe's, and no tap's."""
    with pytest.raises(
        Refused, match=r"of \[32, 32\] and at the teacher's of \[48, 48\] .*leave teacher.image_size out"
    ):
        kdiga(torch.ones(2, 3, 32, 32), torch.ones(2, 3, 48, 48))


@pytest.mark.parametrize("loss", [feature_mse, hcl, kdiga, lambda s, t: vid(s, t, VARIANCE)])
def test_other_shapes_are_refused(loss):
    with pytest.raises(Refused, match="must have the same shape"):
        loss(normal(1, 2, 3, 4, 4), normal(2, 2, 1, 4, 4))


def test_spectral_refuses_maps_of_two_sizes():
    with pytest.raises(Refused, match="one size"):
        spectral(normal(1, 2, 3, 4, 4), normal(2, 2, 3, 2, 2))

"""ITRD and WKD: parity of their losses with plain restatements, and what their modules add."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.itrd import correlation, mutual_information
from kdcore.terms.wkd import cell_statistics, wkd_f, wkd_l
from tests.kdcore.terms.restated import cosine, normal

# --- restatements: one number at a time ---


def plain_correlation(student, teacher, alpha=1.01):
    total, n = 0.0, len(student)
    for d in range(student.shape[1]):
        a, b = ([float(v) for v in side[:, d]] for side in (student, teacher))
        (mean_a, sd_a), (mean_b, sd_b) = ((np.mean(v), np.std(v, ddof=1)) for v in (a, b))
        c = sum((x - mean_a) / sd_a * (y - mean_b) / sd_b for x, y in zip(a, b, strict=True)) / n
        total += ((c - 1) ** 2) ** alpha
    return [math.log2(total)] * n


def plain_mutual_information(student, teacher):
    n = len(student)
    g_student = np.array([[cosine(a, b) for b in student] for a in student])
    g_joint = g_student * np.array([[cosine(a, b) for b in teacher] for a in teacher])
    g_student, g_joint = g_student / np.trace(g_student), g_joint / np.trace(g_joint)
    return [n * sum(g_student[b, j] ** 2 - g_joint[b, j] ** 2 for j in range(n)) for b in range(n)]


def plain_wkd_f(student, teacher, mean_weight=2.0, grid=2):
    """Cells of a 5x4 map: rows 0-2 and 2-4 (adaptive pooling's, which overlap), columns 0-1 and 2-3."""
    cells = [(rows, columns) for rows in (slice(0, 3), slice(2, 5)) for columns in (slice(0, 2), slice(2, 4))]
    values = []
    for s, t in zip(student, teacher, strict=True):
        value = 0.0
        for rows, columns in cells:
            for c in range(s.shape[0]):
                a, b = s[c, rows, columns].ravel(), t[c, rows, columns].ravel()
                deviations = [math.sqrt(x.var(ddof=1) + 1e-5) for x in (a, b)]
                value += mean_weight * (a.mean() - b.mean()) ** 2 + (deviations[0] - deviations[1]) ** 2
        values.append(value / len(cells))
    return values


LOSSES = {
    "correlation": (
        lambda s, t: correlation(s, t, 1.01),
        (6, 3),
        plain_correlation,
        lambda t: math.log2(3) - 2.02 * math.log2(6),
    ),
    "mutual information": (
        mutual_information,
        (6, 3),
        plain_mutual_information,
        lambda t: plain_mutual_information(t, t),
    ),
    "wkd_f": (lambda s, t: wkd_f(s, t, 2.0, 2), (4, 3, 5, 4), plain_wkd_f, lambda t: 0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_contract(name, loss_property, loss_case):
    loss, shape, restated, equal = LOSSES[name]
    loss_case(loss, normal(1, *shape), normal(2, *shape), restated, equal).check(loss_property)


# --- invariants ---


def test_correlation_ignores_scale_and_shift_and_a_feature_that_is_constant():
    s, t = normal(1, 6, 3), normal(2, 6, 3)
    torch.testing.assert_close(correlation(3 * s + 1, 0.5 * t - 2, 1.5), correlation(s, t, 1.5))
    t[:, 1] = 7
    student = s.float().requires_grad_(True)
    correlation(student, t.float(), 1.5).sum().backward()
    assert torch.isfinite(student.grad).all()
    assert (student.grad[:, 1] == 0).all()


def test_mutual_information_is_never_negative_and_0_for_a_teacher_that_tells_nothing_apart():
    s, t = normal(1, 6, 3), normal(2, 6, 5)
    assert mutual_information(s, t).mean() > 0
    parallel = normal(3, 6, 1).abs() * normal(4, 1, 5)
    torch.testing.assert_close(mutual_information(s, parallel), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("zero", ["student", "teacher"])
def test_mutual_information_and_its_gradient_are_finite_where_all_features_are_0(zero):
    features = {"student": normal(1, 6, 4), "teacher": normal(2, 6, 4)} | {zero: torch.zeros(6, 4)}
    student = features["student"].requires_grad_()
    loss = mutual_information(student, features["teacher"])
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_wkd_f_of_whole_maps_is_the_distance_of_their_gaussians():
    """Shifting a map moves its means alone; scaling it about the means moves the deviations alone."""
    t = normal(2, 2, 3, 4, 4)
    torch.testing.assert_close(wkd_f(t + 0.5, t, 2.0, 1), torch.full((2,), 2 * 3 * 0.25, dtype=torch.float64))
    centre = t.mean(dim=(2, 3), keepdim=True)
    deviations = (t.var(dim=(2, 3)) + 1e-5).sqrt()
    scaled = (9 * t.var(dim=(2, 3)) + 1e-5).sqrt()
    expected = (scaled - deviations).square().sum(dim=1)
    torch.testing.assert_close(wkd_f(centre + 3 * (t - centre), t, 2.0, 1), expected)
    assert [x.shape for x in cell_statistics(t, 2)] == [(2, 3, 4), (2, 3, 4)]


def test_cells_of_one_place_have_no_deviation():
    with pytest.raises(Refused, match=r"\[4, 4\].*grid of 4; lower grid"):
        wkd_f(normal(1, 2, 3, 4, 4), normal(2, 2, 3, 4, 4), 2.0, 4)


# --- modules ---


def setting(student, teacher, **context):
    """The context and inputs of {tap: tensor} of both networks."""
    shapes = [{tap: x.shape[1:] for tap, x in side.items()} for side in (student, teacher)]
    count = len(next(iter(student.values())))
    inputs = TermInputs(
        labels=torch.arange(count) % 3,
        student_logits=normal(20, count, 3).float(),
        teacher=TeacherOutputs(logits=normal(21, count, 3).float(), features=teacher),
        student_features=student,
    )
    return TermContext(*shapes, num_classes=3, num_samples=100, **context), inputs


def build(context, **fields):
    torch.manual_seed(0)
    return parse_term({"weight": 1, **fields}).build(context)


@pytest.mark.parametrize("teacher_width", [6, 9])
def test_itrd_embeds_for_both_parts_only_where_widths_differ(teacher_width):
    student = {"classifier_input": normal(1, 4, 6).float()}
    teacher = {"classifier_input": normal(2, 4, teacher_width).float()}
    context, inputs = setting(student, teacher)
    module = build(context, term="itrd", alpha=1.5, mutual_weight=0.3)
    embedded = module.embedding(student["classifier_input"])
    compared = student["classifier_input"] if teacher_width == 6 else embedded
    parts = (
        correlation(embedded, teacher["classifier_input"], 1.5),
        mutual_information(compared, teacher["classifier_input"]),
    )
    torch.testing.assert_close(module(inputs), 2 * parts[0] + 0.3 * parts[1])


def test_itrd_refuses_maps():
    maps = {"classifier_input": normal(1, 4, 6, 2, 2)}
    with pytest.raises(Refused, match="take classifier_input"):
        build(setting(maps, maps)[0], term="itrd", alpha=1.5)


def test_wkd_l_turns_similarity_into_costs_once_and_keeps_them():
    similarity = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    unused = {"unused": torch.zeros(4, 1)}
    context, inputs = setting(unused, unused, class_similarity=similarity)
    module = build(context, term="wkd_l", temperature=2.0, sharpness=2.0)
    costs = 1 - torch.exp(-2 * (1 - similarity)) + 1e-8
    torch.testing.assert_close(module.state_dict()["costs"], costs)
    expected = wkd_l(inputs.student_logits, inputs.teacher_logits, inputs.labels, costs, 2.0, 0.05, 10)
    torch.testing.assert_close(module(inputs), expected)


@pytest.mark.parametrize(("projector", "kernels"), [("conv1x1", [1]), ("bottleneck", [1, 3, 1])])
def test_wkd_f_projects_the_student_and_pools_the_larger_map(projector, kernels):
    student, teacher = {"forward_features": normal(1, 4, 3, 4, 4).float()}, {"forward_features": normal(2, 4, 5, 8, 8)}
    context, inputs = setting(student, {tap: x.float() for tap, x in teacher.items()})
    module = build(context, term="wkd_f", mean_weight=3.0, projector=projector)
    convolutions = [layer for layer in module.project if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in convolutions] == kernels
    assert [type(layer).__name__ for layer in module.project[-2:]] == ["BatchNorm2d", "ReLU"]
    projected = module.project(student["forward_features"])
    assert (projected.shape, bool((projected >= 0).all())) == ((4, 5, 4, 4), True)
    pooled = torch.nn.functional.avg_pool2d(teacher["forward_features"].float(), 2)
    torch.testing.assert_close(module(inputs), wkd_f(projected, pooled, 3.0, 1))

"""Terms with weights of their own: what their modules compute, and what they refuse."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.reviewkd import hcl
from tests.kdcore.terms.restated import normal32 as normal


def setting(student, teacher, **context):
    """The context and inputs of {tap: tensor} of both networks."""
    shapes = [{tap: x.shape[1:] for tap, x in side.items()} for side in (student, teacher)]
    count = len(next(iter(student.values())))
    inputs = TermInputs(
        labels=torch.arange(count) % 3,
        student_logits=normal(20, count, 3),
        teacher=TeacherOutputs(logits=normal(21, count, 3), features=teacher),
        student_features=student,
        sample_ids=torch.arange(count) + 40,
        epoch=0.0,
    )
    return TermContext(*shapes, num_classes=3, num_samples=100, **context), inputs


def build(fields, context):
    torch.manual_seed(0)
    return parse_term({"weight": 1, **fields}).build(context)


def pairs(*taps):
    return [{"student": tap, "teacher": tap} for tap in taps]


STUDENT = {"a": normal(1, 4, 3, 8, 8), "b": normal(2, 4, 5, 2, 2)}
TEACHER = {"a": normal(3, 4, 6, 4, 4), "b": normal(4, 4, 7, 4, 4)}


# --- 1x1 projections ---


@pytest.mark.parametrize("term", ["feature_mse", "feature_only"])
def test_projected_mse_is_the_mean_of_its_pairs(term):
    context, inputs = setting(STUDENT, TEACHER)
    module = build({"term": term, "pairs": pairs("a", "b")}, context)
    first, second = module.regressors
    assert first.bias is None
    projected = torch.einsum("oc,bchw->bohw", first.weight[:, :, 0, 0], STUDENT["a"])  # pooling after projecting
    one = (F.avg_pool2d(projected, 2) - TEACHER["a"]).square().mean(dim=(1, 2, 3))
    projected = torch.einsum("oc,bchw->bohw", second.weight[:, :, 0, 0], STUDENT["b"])
    two = (projected - F.avg_pool2d(TEACHER["b"], 2)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(module(inputs), (one + two) / 2)


@pytest.mark.parametrize("term", ["feature_mse", "feature_only"])
def test_standardised_targets_have_no_scale_of_their_own(term):
    """By hand for one pair; scaled and shifted channels change nothing, and the student's map is left as it is."""
    context, inputs = setting(STUDENT, TEACHER)
    module = build({"term": term, "pairs": pairs("a"), "standardise": True}, context)
    projected = torch.einsum("oc,bchw->bohw", module.regressors[0].weight[:, :, 0, 0], STUDENT["a"])
    target = TEACHER["a"]
    mean, variance = target.mean(dim=(0, 2, 3), keepdim=True), target.var(dim=(0, 2, 3), correction=0, keepdim=True)
    expected = F.avg_pool2d(projected, 2) - (target - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(module(inputs), expected.square().mean(dim=(1, 2, 3)))
    scale = torch.tensor([1.0, 100, 3, 0.5, 20, 7]).to(target)[:, None, None]
    _, other = setting(STUDENT, TEACHER | {"a": scale * target + scale})
    torch.testing.assert_close(module(other), module(inputs), rtol=1e-4, atol=1e-4)


def test_projected_mse_of_tokens_projects_each_token():
    student, teacher = {"t": normal(1, 4, 9, 3)}, {"t": normal(2, 4, 9, 5)}
    context, inputs = setting(student, teacher)
    module = build({"term": "feature_only", "pairs": pairs("t")}, context)
    weight = module.regressors[0].weight[:, :, 0, 0]
    expected = (student["t"] @ weight.T - teacher["t"]).square().mean(dim=(1, 2))
    torch.testing.assert_close(module(inputs), expected)


def test_projected_mse_is_0_when_the_projected_student_equals_the_teacher():
    context, inputs = setting(TEACHER, TEACHER)
    module = build({"term": "feature_mse", "pairs": pairs("a")}, context)
    torch.nn.init.dirac_(module.regressors[0].weight)
    assert module(inputs).abs().max() < 1e-12


def test_feature_only_detaches_the_head_at_the_deepest_pair_or_where_told():
    term = parse_term({"term": "feature_only", "weight": 1, "pairs": pairs("a", "b")})
    assert term.needs().detach_head_at == "b"
    assert term.needs().student_taps == {"a", "b"}
    assert not term.needs().teacher_logits
    term = parse_term({"term": "feature_only", "weight": 1, "pairs": pairs("a", "b"), "detach_head_at": "a"})
    assert term.needs().detach_head_at == "a"


@pytest.mark.parametrize("relu", [True, False])
def test_fitnet_regresses_by_convolution_batch_norm_and_relu(relu):
    context, inputs = setting(STUDENT, TEACHER)
    module = build({"term": "fitnet", "pairs": pairs("a"), "relu": relu}, context)
    conv = module.regressors[0][0]
    x = F.conv2d(F.avg_pool2d(STUDENT["a"], 2), conv.weight, conv.bias)
    x = (x - x.mean(dim=(0, 2, 3), keepdim=True)) / (x.var(dim=(0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
    if relu:
        x = x.clamp_min(0)
    torch.testing.assert_close(module(inputs), (x - TEACHER["a"]).square().mean(dim=(1, 2, 3)), rtol=1e-4, atol=1e-5)


# --- SimKD ---


def simkd(student, teacher):
    context, inputs = setting({"forward_features": student}, {"forward_features": teacher})
    return build({"term": "simkd"}, context)(inputs)


def test_simkd_pools_the_teacher_and_refuses_a_larger_student():
    student, teacher = normal(1, 2, 6, 4, 4), normal(2, 2, 6, 8, 8)
    expected = (student - F.avg_pool2d(teacher, 2)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(simkd(student, teacher), expected)
    with pytest.raises(Refused, match="pool it before the projector"):
        simkd(teacher, student)


def test_simkd_compares_tokens_of_one_shape():
    student = normal(1, 2, 10, 6)
    assert simkd(student, student).tolist() == [0, 0]
    with pytest.raises(Refused, match="must have the same shape"):
        simkd(student, normal(2, 2, 17, 6))


def test_simkd_needs_neither_labels_nor_logits():
    needs = parse_term({"term": "simkd", "weight": 1}).needs()
    assert needs.student_taps == needs.teacher_taps == {"forward_features"}
    assert not needs.hard_labels
    assert not needs.teacher_logits


# --- VID, ReviewKD, ND ---


@pytest.mark.parametrize("variance", [1.1e-5, 1e-4, 5.0, 19.0, 25.0, 89.0, 1e6])
def test_vid_starts_at_any_variance(variance):
    """From 89 on its loss was infinite. Of maps of zeros it is log(variance) / 2."""
    context, inputs = setting({"a": torch.zeros(2, 3, 2, 2)}, {"a": torch.zeros(2, 4, 2, 2)})
    module = build({"term": "vid", "pairs": pairs("a"), "initial_variance": variance}, context)
    torch.testing.assert_close((2 * module(inputs)).exp(), torch.full((2,), variance), rtol=1e-5, atol=0)


def test_vid_starts_at_its_variance_and_regresses_with_three_layers():
    context, inputs = setting(STUDENT, TEACHER)
    module = build({"term": "vid", "pairs": pairs("a")}, context)
    x = F.avg_pool2d(STUDENT["a"], 2)
    for place in (0, 2, 4):
        x = F.conv2d(x, module.regressors[0][place].weight)
        x = x if place == 4 else x.clamp_min(0)
    expected = 0.5 * ((x - TEACHER["a"]).square() / 5 + math.log(5)).mean(dim=(1, 2, 3))
    torch.testing.assert_close(module(inputs), expected, rtol=1e-5, atol=1e-5)


def test_reviewkd_fuses_from_deep_to_shallow():
    student = {"a": normal(1, 4, 3, 8, 8), "b": normal(2, 4, 5, 4, 4), "v": normal(3, 4, 5)}
    teacher = {"a": normal(4, 4, 6, 8, 8), "b": normal(5, 4, 7, 2, 2), "v": normal(6, 4, 9)}
    context, inputs = setting(student, teacher)
    module = build({"term": "reviewkd", "pairs": pairs("a", "b", "v")}, context).eval()  # batch norms are identities
    a, b, v = module.fusions
    scale = 1 / math.sqrt(1 + 1e-5)

    deepest = F.conv2d(student["v"][:, :, None, None], v.reduce[0].weight) * scale
    loss = hcl(F.conv2d(deepest, v.predict[0].weight, padding=1) * scale, teacher["v"][:, :, None, None])
    x, y = F.conv2d(student["b"], b.reduce[0].weight) * scale, deepest.expand(-1, -1, 4, 4)
    gates = torch.sigmoid(F.conv2d(torch.cat([x, y], dim=1), b.attend[0].weight, b.attend[0].bias))
    middle = (gates[:, :1] * x + gates[:, 1:] * y)[:, :, ::2, ::2]  # nearest, 4x4 to the teacher's 2x2
    loss = loss + hcl(F.conv2d(middle, b.predict[0].weight, padding=1) * scale, teacher["b"])
    x = F.conv2d(student["a"], a.reduce[0].weight) * scale
    y = middle.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    gates = torch.sigmoid(F.conv2d(torch.cat([x, y], dim=1), a.attend[0].weight, a.attend[0].bias))
    shallow = gates[:, :1] * x + gates[:, 1:] * y
    loss = loss + hcl(F.conv2d(shallow, a.predict[0].weight, padding=1) * scale, teacher["a"])
    torch.testing.assert_close(module(inputs), loss, rtol=1e-4, atol=1e-5)
    assert v.attend is None


def nd_setting(student_width, means):
    student, teacher = {"classifier_input": normal(1, 4, student_width)}, {"classifier_input": normal(2, 4, 6)}
    return setting(student, teacher, class_means={"classifier_input": means})


def test_nd_adapts_a_student_of_another_width_only():
    same = build({"term": "nd"}, nd_setting(6, normal(3, 3, 6))[0])
    other = build({"term": "nd"}, nd_setting(5, normal(3, 3, 6))[0])
    assert not list(same.parameters())
    assert [type(layer).__name__ for layer in other.adapter] == ["BatchNorm1d", "Dropout", "Linear"]
    assert "class_means" in same.state_dict()
    assert (other.adapter[2].bias == 0).all()  # as the authors begin
    assert other.adapter[2].weight.std() > 0.1


def test_nd_refuses_means_that_are_missing_or_of_other_classes():
    means = normal(3, 3, 6)
    means[1] = 0
    with pytest.raises(Refused, match=r"classes \[1\]"):
        build({"term": "nd"}, nd_setting(6, means)[0])
    with pytest.raises(Refused, match="2 class means"):
        build({"term": "nd"}, nd_setting(6, normal(3, 2, 6))[0])
    with pytest.raises(Refused, match="take classifier_input"):
        build(
            {"term": "nd", "student_tap": "a"}, setting({"a": STUDENT["a"]}, {"classifier_input": normal(2, 4, 6)})[0]
        )


@pytest.mark.parametrize("mean", [0.0, math.nan])
def test_nd_refuses_a_class_without_images(mean):
    """The mean of no images is not a number, which the sentence about it never met."""
    means = torch.ones(3, 6)
    means[1] = mean
    shapes = {"classifier_input": torch.Size((6,))}
    context = TermContext(shapes, shapes, 3, 8, classes=("ant", "bee", "cow"), class_means={"classifier_input": means})
    with pytest.raises(
        Refused, match=r"classes \['bee'\] have no mean .*the training set lacks images of them; add some"
    ):
        build({"term": "nd"}, context)

"""SimKD's student: the projector's size, and what is removed, trained, frozen and counted."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from kdcore.errors import Refused
from kdcore.layout import Layout
from kdcore.reused import ReusedClassifierStudent, TeacherHead, deployed_parameters, projector
from tests.kdcore.reused_students import CIFAR, SMALL, build, student_of, teacher_of


@pytest.mark.parametrize(
    ("s", "t", "factor", "parameters"),
    [
        (256, 256, 2, 214_016),
        (256, 256, 4, 70_400),
        (256, 256, 8, 26_240),
        (512, 2048, 2, 12_066_816),
        (512, 2048, 4, 3_676_160),
        (512, 512, 2, 854_016),
        (1024, 2048, 2, 12_591_104),
        (64, 128, 2, 49_664),
        (464, 256, 2, 240_640),
    ],
)
def test_projector_parameters(s, t, factor, parameters):
    for layout in (Layout(t, (2, 2)), Layout(t, (2, 2), "tokens", 1)):
        with torch.device("meta"):
            assert sum(p.numel() for p in projector(s, layout, factor).parameters()) == parameters


def test_projector_is_three_convolutions_each_with_norm_and_relu():
    torch.manual_seed(0)
    module = projector(6, Layout(10, (4, 4)), factor=3)
    x = torch.randn(2, 6, 4, 4)
    expected = x
    for i, padding in ((0, 0), (3, 1), (6, 0)):
        expected = F.conv2d(expected, module[i].weight, padding=padding)
        mean = expected.mean(dim=(0, 2, 3), keepdim=True)
        variance = expected.var(dim=(0, 2, 3), keepdim=True, unbiased=False)
        expected = ((expected - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    assert module[0].out_channels == 3  # floor(10 / 3)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


def test_projector_of_tokens_is_that_of_maps_but_for_the_prefix():
    """Patches meet the 3x3 kernel on their grid; a prefix token meets its centre; all share the batch norms."""
    torch.manual_seed(0)
    tokens = projector(6, Layout(8, (3, 5), "tokens", 2), factor=2).eval()
    maps = projector(6, Layout(8, (3, 5)), factor=2).eval()
    maps.load_state_dict(tokens.state_dict())
    x = torch.randn(2, 6, 2 + 15, 1)
    y = tokens(x)
    torch.testing.assert_close(y[:, :, 2:, 0].unflatten(2, (3, 5)), maps(x[:, :, 2:, 0].unflatten(2, (3, 5))))
    torch.testing.assert_close(y[:, :, 1:2], maps(x[:, :, 1:2]))


@pytest.mark.parametrize("factor", [0, 9])
def test_impossible_factor_is_refused(factor):
    with pytest.raises(Refused, match=f"factor {factor} must be between 1 and the teacher's 8 channels"):
        projector(6, Layout(8, (2, 2)), factor)


@pytest.mark.parametrize(
    ("student", "removed"),
    [
        ("cifar_resnet8", {"fc"}),
        ("cifar_mobilenetv2_half", {"classifier", "conv_head"}),
        ("cifar_shufflenetv2", {"fc", "conv_head"}),
        ("test_vit", {"head"}),
        ("test_vit2", {"head", "fc_norm"}),
        ("test_vit3", {"head", "attn_pool"}),
        ("test_convnext", {"head"}),
        ("mobilenetv3_small_050", {"classifier", "conv_head"}),
        ("test_efficientnet", {"classifier"}),  # timm counts its conv_head to the features
    ],
)
def test_students_own_head_is_removed(student, removed):
    size = CIFAR if student.startswith("cifar") else SMALL
    before = {n for n, _ in build(student).named_parameters()}
    model = student_of(student, teacher_of("cifar_resnet8"), size)
    gone = before - {n for n, _ in model.student.named_parameters()}
    assert {n.split(".")[0] for n in gone} == removed


def test_deployed_parameters_of_the_papers_pair():
    """ResNet-32x4 -> ResNet-8x4: backbone 1.208 M, projector 0.214 M, the teacher's 0.026 M: 1.448 M."""
    teacher, student = build("cifar_resnet32x4", 100), build("cifar_resnet8x4", 100)
    model = ReusedClassifierStudent(student, TeacherHead.of(teacher, CIFAR), CIFAR)
    assert deployed_parameters(model) == (1_233_540 - 25_700) + 214_016 + 25_700 == 1_447_556
    assert deployed_parameters(teacher) == 7_433_860
    assert deployed_parameters(nn.Sequential(model)) == 1_447_556


def test_training_moves_backbone_and_projector_and_nothing_of_the_teacher():
    teacher = teacher_of("cifar_resnet8x4").requires_grad_(False)
    kept = {n: t.clone() for n, t in teacher.state_dict().items()}
    model = student_of("cifar_resnet8", teacher, CIFAR).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    images = torch.randn(4, 3, 32, 32)
    loss = (model.forward_features(images) - model.pool_teacher(teacher.forward_features(images))).square().mean()
    loss.backward()
    optimizer.step()
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == {n for n in before if n.startswith(("student.", "projector."))}
    assert {"head.classifier.weight", "head.classifier.bias"} == set(before) - moved
    torch.testing.assert_close(before["head.classifier.weight"], teacher.fc.weight, rtol=0, atol=0)
    assert all(torch.equal(t, kept[n]) for n, t in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_building_leaves_modes_statistics_and_the_teachers_head_alone():
    teacher, student = teacher_of("test_convnext").train(), build("test_resnet").train()
    kept = {n: t.clone() for n, t in student.state_dict().items()}
    head = TeacherHead.of(teacher, SMALL)
    model = ReusedClassifierStudent(student, head, SMALL)
    assert teacher.training
    assert model.student.training
    assert all(torch.equal(t, kept[n]) for n, t in model.student.state_dict().items())
    assert isinstance(teacher.head.norm.weight, nn.Parameter)
    assert isinstance(teacher.get_classifier().weight, nn.Parameter)
    with torch.no_grad():
        teacher.get_classifier().weight.zero_()
    assert model.get_classifier().weight.abs().min() > 0  # a copy


def test_state_dict_restores_the_whole_graph():
    teacher = teacher_of("test_vit2")
    model = student_of("test_vit", teacher).eval()
    other = ReusedClassifierStudent(build("test_vit", seed=5), TeacherHead.of(build("test_vit2"), SMALL), SMALL).eval()
    images = torch.randn(2, 3, *SMALL)
    assert not torch.equal(model(images), other(images))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(images), other(images), rtol=0, atol=0)


def test_timms_contract():
    model = student_of("test_vit", teacher_of("test_resnet"))
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (7, 96, 96)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert model.get_classifier().in_features == 96
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 160, 160)
    assert "student.pos_embed" in model.no_weight_decay() <= {f"student.{n}" for n in model.student.no_weight_decay()}
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    images = torch.randn(2, 3, *SMALL)
    model.eval()
    torch.testing.assert_close(model(images), model.forward_head(model.forward_features(images)), rtol=0, atol=0)


def test_the_graph_can_be_exported():
    model = student_of("cifar_resnet8", teacher_of("cifar_vgg8"), CIFAR).eval()
    images = torch.randn(2, 3, 32, 32)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))

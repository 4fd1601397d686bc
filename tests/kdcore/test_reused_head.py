"""The head that SimKD's student takes over: it answers as its teacher does, or is refused."""

import pytest
import timm
import torch
from torch import nn

from kdcore.batch import Classifier
from kdcore.errors import Refused
from kdcore.layout import Layout
from kdcore.reused import ReusedClassifierStudent, TeacherHead
from tests.kdcore.reused_students import CIFAR, SMALL, build, student_of, teacher_of


@pytest.mark.parametrize(
    "name", ["cifar_resnet8x4", "cifar_wrn_16_2", "cifar_vgg8", "cifar_resnet50", "cifar_shufflenetv1"]
)
def test_head_of_a_cifar_teacher_gives_its_logits(name):
    teacher = teacher_of(name)
    model = student_of("cifar_resnet8", teacher, CIFAR)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(model.forward_head(teacher.forward_features(images)), teacher(images))


@pytest.mark.parametrize("student", ["test_vit", "test_vit2", "test_resnet"])
@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit2", "test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"]
)
def test_any_student_takes_the_form_of_any_teacher(student, name):
    """Maps, tokens with class token or register, and channels-last maps, in all pairs."""
    teacher = teacher_of(name)
    if name == "test_mambaout":  # its own head has a hidden layer; a plain one serves to test channels-last maps
        head = TeacherHead(Classifier(torch.randn(7, 64), None), Layout(64, (5, 5), "NHWC"))
        model = ReusedClassifierStudent(build(student), head, SMALL)
    else:
        model = student_of(student, teacher)
    images = torch.randn(2, 3, *SMALL)
    with torch.no_grad():
        map_of_teacher = teacher.forward_features(images)
        target = model.pool_teacher(map_of_teacher)
        if name != "test_mambaout":
            torch.testing.assert_close(model.forward_head(map_of_teacher), teacher(images))
            torch.testing.assert_close(model.forward_head(target), teacher(images))  # pooled 10x10 -> 5x5: same mean
    features = model.forward_features(images)
    assert features.shape == target.shape
    logits = model(images)
    assert logits.shape == (2, 7)
    (features.square().mean() + logits.square().mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_norm_between_pooling_and_classifier_is_reused():
    for name in ("test_vit2", "test_convnext"):
        head = TeacherHead.of(teacher_of(name), SMALL)
        assert head.norm is not None
        norm = student_of("test_resnet", teacher_of(name)).head.norm
        assert dict(norm.named_parameters()) == {}
        torch.testing.assert_close(norm.weight, head.norm.weight.detach())


def test_pooling_is_the_teachers():
    assert TeacherHead.of(teacher_of("test_vit"), SMALL).pool == "token"
    assert TeacherHead.of(teacher_of("test_vit2"), SMALL).pool == "avg"


def test_last_relu_only_where_the_teacher_has_none_below_zero():
    post_relu, signed = teacher_of("cifar_resnet8x4"), teacher_of("test_vit")
    images = torch.randn(4, 3, 32, 32)
    for student in ("cifar_resnet8", "cifar_mobilenetv2_half"):
        assert student_of(student, post_relu, CIFAR).forward_features(images).min() == 0
    assert student_of("test_vit", signed).forward_features(torch.randn(4, 3, *SMALL)).min() < 0


def test_a_head_may_come_without_its_network():
    """What a cache keeps of a convolutional teacher: the classifier, with or without bias, and the map's shape."""
    weight, bias = torch.randn(5, 12), torch.randn(5)
    features = torch.rand(2, 12, 8, 8)
    for classifier in (Classifier(weight, bias), Classifier(weight, None)):
        model = ReusedClassifierStudent(build("cifar_resnet8"), TeacherHead(classifier, Layout(12, (8, 8))), CIFAR)
        expected = features.mean(dim=(2, 3)) @ weight.T + (0 if classifier.bias is None else bias)
        torch.testing.assert_close(model.forward_head(features), expected)
    with pytest.raises(Refused, match=r"classifier of \[5, 12\] cannot read maps of 16 channels"):
        ReusedClassifierStudent(build("cifar_resnet8"), TeacherHead(classifier, Layout(16, (8, 8))), CIFAR)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifar_mobilenetv2_half", "CifarMobileNetV2 computes more than a pooled linear head after its last features"),
        ("cifar_shufflenetv2", "CifarShuffleNetV2 computes more"),
        ("test_vit3", "VisionTransformer computes more"),  # attention pooling
        ("mobilenetv3_small_050", "MobileNetV3 computes more"),  # a hidden layer
    ],
)
def test_teacher_with_another_head_is_refused(name, reason):
    with pytest.raises(Refused, match=f"{reason}.*choose a teacher with such a head"):
        TeacherHead.of(build(name), CIFAR if name.startswith("cifar") else SMALL)


def test_networks_without_timms_contract_are_refused():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    with pytest.raises(Refused, match="Sequential's classifier is a NoneType"):
        TeacherHead.of(plain, CIFAR)
    with pytest.raises(Refused, match="must be a network of timm"):
        ReusedClassifierStudent(plain, TeacherHead.of(teacher_of("cifar_resnet8"), CIFAR), CIFAR)
    with pytest.raises(Refused, match=r"rejects images of \[32, 32\]"):
        TeacherHead.of(teacher_of("test_vit3"), CIFAR)


def test_tokens_that_form_no_grid_are_refused():
    tokens = torch.randn(2, 1 + 99, 64)
    network = build("test_vit")
    network.forward_features = lambda images: tokens
    with pytest.raises(Refused, match=r"99 tokens \(after 1 prefix tokens\) form no grid"):
        TeacherHead.of(network, SMALL)


@pytest.mark.parametrize("name", ["gmlp_ti16_224", "vit_relpos_small_patch16_224"])
def test_tokens_without_a_class_token(name):
    """They were refused, for a convolution of no tokens, as if the size were to blame: seven families of timm."""
    teacher = timm.create_model(name, num_classes=3, img_size=32).eval()
    head = TeacherHead.of(teacher, (32, 32))
    assert (head.layout.kind, head.layout.num_prefix_tokens) == ("tokens", 0)
    student = ReusedClassifierStudent(timm.create_model("test_resnet", num_classes=3), head, (32, 32))
    images = torch.randn(2, 3, 32, 32)
    logits = student(images)
    logits.sum().backward()
    assert logits.shape == (2, 3)
    assert student.forward_features(images).shape == student.pool_teacher(teacher.forward_features(images)).shape

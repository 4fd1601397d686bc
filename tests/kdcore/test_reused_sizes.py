"""SimKD's student and a teacher whose last maps differ in size: the larger is pooled, or both are refused."""

import pytest
import timm
import torch
import torch.nn.functional as F

from kdcore.batch import Classifier
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.layout import Layout
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import rehearse
from kdcore.reused import ReusedClassifierStudent, TeacherHead
from kdcore.terms import parse_term
from tests.kdcore.reused_students import CIFAR, SMALL, build, student_of, teacher_of


def test_a_larger_student_is_pooled_before_the_projector():
    """8x8 -> 4x4: what the projector reads is the 2x2 mean."""
    model = student_of("cifar_resnet8", teacher_of("cifar_vgg8"), CIFAR).eval()
    images = torch.randn(2, 3, 32, 32)
    read = []
    model.projector.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    assert model.forward_features(images).shape == (2, 512, 4, 4)
    torch.testing.assert_close(read[0], F.avg_pool2d(model.student.forward_features(images), 2))
    features = torch.randn(2, 512, 4, 4)
    assert model.pool_teacher(features) is features


def test_a_larger_teacher_is_pooled():
    """4x4 <- 8x8: the student stays, the target is the 2x2 mean, with the same logits."""
    teacher = teacher_of("cifar_resnet8x4")
    model = student_of("cifar_vgg8", teacher, CIFAR).eval()
    images = torch.randn(2, 3, 32, 32)
    assert model.forward_features(images).shape == (2, 256, 4, 4)
    features = teacher.forward_features(images)
    torch.testing.assert_close(model.pool_teacher(features), F.avg_pool2d(features, 2))
    torch.testing.assert_close(model.forward_head(model.pool_teacher(features)), teacher(images))


def test_the_class_token_is_never_pooled_with_patches():
    teacher = teacher_of("test_vit")
    model = student_of("test_resnet", teacher)
    features = teacher.forward_features(torch.randn(2, 3, *SMALL))  # 1 + 10x10 tokens; the student has 5x5
    target = model.pool_teacher(features)
    assert target.shape == (2, 1 + 25, 64)
    torch.testing.assert_close(target[:, 0], features[:, 0])
    patches = features[:, 1:].unflatten(1, (5, 2, 5, 2)).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(target[:, 1:], patches)


def test_maps_of_which_neither_is_the_larger_are_refused():
    head = TeacherHead(Classifier(torch.randn(7, 64), None), Layout(64, (4, 16)))
    with pytest.raises(Refused, match=r"\[8, 8\] and the teacher's \[4, 16\]: neither contains the other"):
        ReusedClassifierStudent(build("cifar_resnet8"), head, CIFAR)


def test_maps_of_equal_size_are_not_pooled_for_larger_images_either():
    model = student_of("cifar_resnet8", teacher_of("cifar_resnet8x4"), CIFAR)
    assert model.forward_features(torch.randn(2, 3, 48, 40)).shape == (2, 256, 12, 10)


def test_images_need_not_be_square():
    model = student_of("test_vit", teacher_of("test_resnet"), (96, 64))
    assert model.forward_features(torch.randn(2, 3, 96, 64)).shape == (2, 96, 3, 2)


@pytest.mark.parametrize("size", [16, 24, 32, 48])
def test_the_target_is_the_teachers_map_pooled_once_at_any_size_of_images(size):
    """Below the size of training it was pooled to that size's grid first; above it, the student's map was refused."""
    torch.manual_seed(0)
    teacher = timm.create_model("cifar_resnet8x4", num_classes=3).eval()
    student = timm.create_model("cifar_vgg8", num_classes=3)
    model = ReusedClassifierStudent(student, TeacherHead.of(teacher, (32, 32)), (32, 32)).eval()
    assert (model.student_layout.grid, model.teacher_layout.grid) == ((4, 4), (8, 8))
    with torch.no_grad():
        images = torch.randn(2, 3, size, size)
        ours, theirs = model.forward_features(images), teacher.forward_features(images)
        mine, target = model.compared(ours, theirs)
    assert torch.equal(mine, ours)
    assert torch.equal(target, F.adaptive_avg_pool2d(theirs, ours.shape[2:]))
    if size == 32:
        assert torch.equal(target, model.pool_teacher(theirs))


def test_a_student_with_the_larger_map_is_not_shown_smaller_images():
    """Its projector pools to the teacher's map of the size of training, which deployed weights rely on."""
    torch.manual_seed(0)
    teacher = timm.create_model("cifar_vgg8", num_classes=3).eval()
    student = timm.create_model("cifar_resnet8", num_classes=3)
    model = ReusedClassifierStudent(student, TeacherHead.of(teacher, (32, 32)), (32, 32)).eval()
    term = parse_term({"term": "simkd", "weight": 1})
    needs = term.needs()
    distiller = Distiller(model, [term], image_size=(32, 32), num_samples=8, teacher=OnlineTeacher(teacher, needs))
    for size in (32, 48):
        rehearse(distiller, (size, size), 8, mixes=False)
    with pytest.raises(Refused, match=r"larger than the teacher's .*at views.size, so leave smaller ones out of"):
        rehearse(distiller, (16, 16), 8, mixes=False)

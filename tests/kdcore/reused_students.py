"""Teachers, and students by SimKD that reuse their heads."""

import timm
import torch
from torch import nn

import kdcore.networks  # noqa: F401  registers the networks
from kdcore.reused import ReusedClassifierStudent, TeacherHead

torch.set_num_threads(1)  # for tensors this small, threads that contend for cores cost far more than they give
CIFAR, SMALL = (32, 32), (160, 160)  # test_vit3 takes no other size


def build(name: str, num_classes: int = 7, seed: int = 0, **kwargs: object) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes, **kwargs)


def teacher_of(name: str, num_classes: int = 7) -> nn.Module:
    """Classifier and norms away from their initial values, so that a forgotten one shows."""
    network = build(name, num_classes, seed=1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1 or parameter.shape[0] == num_classes:
                parameter.add_(torch.rand_like(parameter) / 2)
    return network


def student_of(student: str, teacher: nn.Module, image_size=SMALL, factor: int = 2) -> ReusedClassifierStudent:
    return ReusedClassifierStudent(build(student), TeacherHead.of(teacher, image_size), image_size, factor)

"""SimKD's student: the projector's size, the reused head's exactness, and what is trained, frozen and removed."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import kdcore.networks  # noqa: F401  registers the networks
from kdcore.batch import Classifier
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.layout import Layout
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import rehearse
from kdcore.reused import ReusedClassifierStudent, TeacherHead, deployed_parameters, projector
from kdcore.terms import parse_term

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


# The projector


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


# The reused head


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


# Sizes


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


# What is removed, trained, frozen and counted


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

"""Networks that lay out their maps [B,H,W,C] are read as all others: taps give [B,C,H,W], and nothing else moves."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

import kdcore.networks  # noqa: F401  registers cifar_resnet8
from kdcore.batch import Batch
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.evaluation import LinearCKA
from kdcore.layout import is_channels_last, layout_of
from kdcore.online_teacher import OnlineTeacher
from kdcore.reused import ReusedClassifierStudent, TeacherHead
from kdcore.taps import CLASSIFIER_INPUT, FORWARD_FEATURES, FeatureTaps, usable_taps
from kdcore.terms import parse_term
from kdcore.terms.attention import at

torch.set_num_threads(1)
SIZE = (64, 64)
SWIN = {
    "img_size": 64,
    "window_size": 2,
    "embed_dim": 24,
    "depths": (1, 1, 1, 1),
    "num_heads": (1, 2, 3, 4),
    "drop_path_rate": 0.0,
}


def swin(num_classes: int = 5, seed: int = 0, **args: object) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=num_classes, **SWIN | args)


def test_every_map_of_a_swin_is_handed_out_channels_first():
    model = swin()
    names = [
        FORWARD_FEATURES,
        CLASSIFIER_INPUT,
        "patch_embed.proj",
        "patch_embed",
        "layers.0",
        "layers.2.blocks.0",
        "norm",
    ]
    taps = FeatureTaps(model, names)
    assert taps.shapes(SIZE) == {
        "patch_embed.proj": (24, 16, 16),
        "patch_embed": (24, 16, 16),
        "layers.0": (24, 16, 16),
        "layers.2.blocks.0": (96, 4, 4),
        "norm": (192, 2, 2),
        FORWARD_FEATURES: (192, 2, 2),
        CLASSIFIER_INPUT: (192,),
    }
    assert taps.moved == {"patch_embed", "layers.0", "layers.2.blocks.0", "norm", FORWARD_FEATURES}
    assert usable_taps(model, ["layers.1"], SIZE) == {"layers.1": (48, 8, 8)}


def test_the_network_goes_on_with_its_own_map():
    model, images = swin().eval(), torch.randn(2, 3, *SIZE)
    logits, features = FeatureTaps(model, {"layers.1", FORWARD_FEATURES})(images)
    torch.testing.assert_close(logits, model(images), rtol=0, atol=0)
    own = model.forward_features(images)
    assert torch.equal(features[FORWARD_FEATURES], own.permute(0, 3, 1, 2))
    assert torch.equal(features[FORWARD_FEATURES].mean(dim=(2, 3)), own.permute(0, 3, 1, 2).mean(dim=(2, 3)))


def test_a_head_detached_at_a_channels_last_map_keeps_the_labels_from_the_backbone():
    model = swin()
    taps = FeatureTaps(model, (), detach_head_at="layers.3")
    taps.shapes(SIZE)
    logits, features = taps(torch.randn(2, 3, *SIZE))
    logits.logsumexp(dim=1).sum().backward(retain_graph=True)
    assert model.layers[0].blocks[0].mlp.fc1.weight.grad is None
    assert model.norm.weight.grad.any()
    features["layers.3"].square().sum().backward()
    assert model.layers[0].blocks[0].mlp.fc1.weight.grad.any()


def test_a_channels_last_tap_that_is_overwritten_in_place_is_refused():
    model = swin()
    model.layers[3].blocks[0].register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
    with pytest.raises(Refused, match="overwritten in place"):
        FeatureTaps(model, {"layers.3.downsample"}).shapes(SIZE)


@pytest.mark.parametrize(
    ("name", "args", "size", "taps"),
    [
        ("swinv2_tiny_window8_256", SWIN, 64, {"layers.1": (48, 8, 8), "layers.1.blocks.0": (48, 8, 8)}),
        (
            "test_mambaout",
            {},
            160,
            {"stem": (16, 40, 40), "stem.conv1": (8, 80, 80), "stages.0.blocks.0": (16, 40, 40)},
        ),
        ("swinv2_cr_tiny_ns_224", SWIN, 64, {"stages.1.blocks.0": (48, 8, 8), "stages.1": (48, 8, 8)}),
    ],
)
def test_other_families(name, args, size, taps):
    """One that declares its layout with inner blocks, one with a stem of convolutions, one that declares nothing."""
    model = timm.create_model(name, num_classes=5, **args)
    found = FeatureTaps(model, {*taps, FORWARD_FEATURES}).shapes((size, size))
    assert {tap: found[tap] for tap in taps} == taps
    channels, height, width = found[FORWARD_FEATURES]
    assert (channels, height) == (model.num_features, width)


@pytest.mark.parametrize("sides", [(64, 64), (96, 64), (33, 50)])
def test_the_sides_tell_where_the_channels_are(sides):
    declaring = swin()
    grid = -(-sides[0] // 4), -(-sides[1] // 4)
    for channels in (1, 3, 192, grid[1]):
        last = torch.Size((2, *grid, channels))
        assert is_channels_last(last, sides, declaring)
        assert not is_channels_last(torch.Size((2, channels, *grid)), sides, nn.Identity())
        assert not is_channels_last(torch.Size((2, channels, *grid)), sides, declaring, nn.Conv2d(1, 1, 1))
    assert not is_channels_last(torch.Size((2, 192, *grid)), sides, declaring)
    assert not is_channels_last(torch.Size((2, *grid, 192)), sides, nn.Identity())  # from elsewhere, and silent


def test_a_network_inside_another_is_read_as_itself():
    head = TeacherHead.of(timm.create_model("cifar_resnet8", num_classes=5), SIZE)
    graph = ReusedClassifierStudent(swin(), head, SIZE)
    assert graph.output_fmt == "NCHW"
    assert FeatureTaps(graph, {"student.layers.1"}).shapes(SIZE) == {"student.layers.1": (48, 8, 8)}


def test_cka_of_a_map_with_its_own_mean_is_one():
    model, cka = swin().eval(), LinearCKA()
    with torch.no_grad():
        cka.add(FeatureTaps(model, {FORWARD_FEATURES, CLASSIFIER_INPUT})(torch.randn(16, 3, *SIZE))[1])
    assert cka.result()[FORWARD_FEATURES, CLASSIFIER_INPUT] == pytest.approx(1, abs=1e-6)


class Turned(nn.Module):
    """A network of maps [B,C,H,W], as it would be if it laid them out [B,H,W,C]."""

    output_fmt = "NHWC"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.num_classes = network, network.num_classes

    def forward_features(self, images: Tensor) -> Tensor:
        return self.network.forward_features(images).permute(0, 2, 3, 1)

    def forward_head(self, features: Tensor) -> Tensor:
        return self.network.forward_head(features.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"term": "at", "weight": 1},
        {"term": "feature_mse", "weight": 1},
        {"term": "fitnet", "weight": 1},
        {"term": "vid", "weight": 1},
        {"term": "reviewkd", "weight": 1},
        {"term": "spectral", "weight": 1, "only_correct_teacher": False},
    ],
)
def test_a_loss_does_not_see_how_a_network_lays_out_its_maps(fields):
    term = parse_term(fields | {"pairs": [{"student": FORWARD_FEATURES, "teacher": FORWARD_FEATURES}]})
    student, teacher = (timm.create_model(f"cifar_resnet{n}", num_classes=5) for n in ("8", "8x4"))
    batch = Batch(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    losses = []
    for turned in (False, True):
        torch.manual_seed(0)
        asked = OnlineTeacher(Turned(copy.deepcopy(teacher)) if turned else teacher, term.needs())
        own = copy.deepcopy(student)
        network = Turned(own) if turned else own
        distiller = Distiller(network, [term], image_size=(32, 32), num_samples=8, teacher=asked)
        losses.append(distiller.train()(batch).loss)
    torch.testing.assert_close(*losses)


def test_attention_of_a_network_with_itself_is_0_in_both_layouts():
    model, images = timm.create_model("cifar_resnet8", num_classes=5).eval(), torch.randn(2, 3, 32, 32)
    (_, one), (_, other) = (FeatureTaps(n, {FORWARD_FEATURES})(images) for n in (model, Turned(model)))
    assert at(one[FORWARD_FEATURES], other[FORWARD_FEATURES]).tolist() == [0, 0]


@pytest.mark.parametrize("student", ["cifar_resnet8", "test_vit"])
def test_simkd_of_a_channels_last_teacher_compares_in_the_teachers_own_layout(student):
    """To the bit what the graph's own features and the pooled teacher's give."""
    teacher = swin(seed=1).eval()
    args = {"img_size": 64} if student == "test_vit" else {}
    graph = ReusedClassifierStudent(
        timm.create_model(student, num_classes=5, **args), TeacherHead.of(teacher, SIZE), SIZE
    )
    assert graph.output_fmt == "NHWC"
    term = parse_term({"term": "simkd", "weight": 1})
    images, ids = torch.randn(4, 3, *SIZE), torch.arange(4)
    distiller = Distiller(
        graph, [term], image_size=SIZE, num_samples=8, teacher=OnlineTeacher(teacher, term.needs())
    ).eval()
    assert distiller.student_shapes[FORWARD_FEATURES] == distiller.teacher_shapes[None][FORWARD_FEATURES] == (192, 2, 2)
    with torch.no_grad():
        found = distiller(Batch(images, ids, ids, torch.zeros(4, dtype=torch.int64))).loss
        wanted = graph.forward_features(images) - graph.pool_teacher(teacher.forward_features(images))
    assert torch.equal(found, wanted.square().flatten(1).mean(dim=1).mean())


def test_the_layout_of_last_features_is_that_of_their_taps():
    for model in (swin(), timm.create_model("cifar_resnet8", num_classes=5)):
        layout = layout_of(model, model.forward_features(torch.randn(2, 3, *SIZE)), SIZE)
        assert (layout.channels, *layout.grid) == FeatureTaps(model, {FORWARD_FEATURES}).shapes(SIZE)[FORWARD_FEATURES]

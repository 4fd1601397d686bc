"""Taps that cannot work are refused with what to tap instead, and so are images that a network does not take."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from kdcore.errors import Refused
from kdcore.reused import TeacherHead
from kdcore.taps import CLASSIFIER_INPUT, FeatureTaps
from tests.kdcore.tapped import network


class Plain(nn.Module):
    """A network by timm's contract, small enough to see through."""

    def __init__(self, body: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.body, self.idle, self.fc = body, nn.Identity(), nn.Linear(width, 3)
        self.num_classes = 3

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_a_tap_that_a_skip_connection_leads_around_cannot_detach_the_head():
    model, _, _ = network("cifar_resnet8")
    with pytest.raises(Refused, match=r"'layer2.0.act1'.*skip connection.*block that contains it"):
        FeatureTaps(model, (), detach_head_at="layer2.0.act1").shapes((32, 32))
    assert FeatureTaps(model, {"layer2.0.act1"}).shapes((32, 32)) == {"layer2.0.act1": (32, 16, 16)}


def test_an_unknown_tap_is_refused_with_the_names_that_exist():
    model, _, _ = network("cifar_resnet8")
    with pytest.raises(Refused, match=r"CifarResNet has no tap 'layr3'; did you mean .*layer3"):
        FeatureTaps(model, {"layr3"})
    with pytest.raises(Refused, match=r"no tap 'qqqq'; it has conv1, .*layer1, .*forward_features, classifier_input"):
        FeatureTaps(model, {"qqqq"})
    with pytest.raises(Refused, match="no tap ''"):
        FeatureTaps(model, {""})
    with pytest.raises(Refused, match=r"did you mean .*layer3"):
        FeatureTaps(model, (), detach_head_at="layer33")


def test_a_tap_that_is_overwritten_in_place_is_refused():
    model, _, _ = network("cifar_resnet8")
    with pytest.raises(Refused, match=r"'bn1' is overwritten in place.*tap that layer, or the block"):
        FeatureTaps(model, {"bn1"}).shapes((32, 32))
    with pytest.raises(Refused, match="overwritten in place"):
        FeatureTaps(model, (), detach_head_at="bn1").shapes((32, 32))
    assert FeatureTaps(model, {"act1"}).shapes((32, 32)) == {"act1": (16, 32, 32)}


class Dropping(nn.Module):
    """A network with an in-place dropout behind its pooling, as torchvision's EfficientNets have one."""

    def __init__(self, probability):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1)
        self.drop, self.fc = nn.Dropout(probability, inplace=True), nn.Linear(4, 5)
        self.num_classes = 5

    def forward(self, images):
        return self.fc(self.drop(self.pool(self.conv(images)).flatten(1)))


def test_a_tap_that_is_overwritten_in_training_alone_is_refused_there():
    """Terms would read features after the dropout; what an evaluation or a dropout of 0 leaves alone is read."""
    images = torch.ones(2, 3, 4, 4)
    taps, never = (FeatureTaps(Dropping(probability), {"pool"}) for probability in (0.5, 0.0))
    for one in (taps, never):
        assert one.shapes((4, 4)) == {"pool": (4, 1, 1)}
    taps.model.eval()
    with torch.inference_mode():
        taps(images)
    never.model.train()
    never(images)
    taps.model.train()
    with pytest.raises(Refused, match=r"'pool' is overwritten in place.*in training a dropout.*tap that layer, or"):
        taps(images)


def test_a_tap_that_never_runs_is_refused():
    taps = FeatureTaps(Plain(nn.Conv2d(3, 4, 1)), {"idle"})
    with pytest.raises(Refused, match="'idle' of Plain does not run"):
        taps(torch.zeros(1, 3, 2, 2))


def test_a_tap_that_runs_twice_is_refused():
    shared = nn.Conv2d(3, 3, 1)
    taps = FeatureTaps(Plain(nn.Sequential(shared, nn.ReLU(), shared), width=3), {"body.0"})
    with pytest.raises(Refused, match=r"'body.0' runs more than once.*block that contains it"):
        taps(torch.zeros(1, 3, 2, 2))
    assert taps._captured is None  # and the failure leaves no capture running


def test_a_tap_of_several_tensors_is_refused():
    class Split(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return x.chunk(2)

    class Join(nn.Module):
        def forward(self, parts: tuple[Tensor, ...]) -> Tensor:
            return torch.cat(parts)

    taps = FeatureTaps(Plain(nn.Sequential(Split(), Join()), width=3), {"body.0"})
    with pytest.raises(Refused, match=r"'body.0' gives a tuple, not one tensor"):
        taps(torch.zeros(2, 3, 2, 2))


def test_a_network_with_two_classifiers_has_no_classifier_input():
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1, num_classes=5)
    with pytest.raises(Refused, match=r"no single classifier \(but a tuple\)"):
        FeatureTaps(model, {CLASSIFIER_INPUT})


def test_images_of_a_size_that_a_vit_does_not_take_are_refused():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5)
    taps = FeatureTaps(model.train(), {"blocks.0"})
    with pytest.raises(Refused, match=r"rejects images of \[48, 48\].*img_size"):
        taps.shapes((48, 48))
    assert model.training  # the failed probe has put the mode back
    assert taps.shapes((32, 32)) == {"blocks.0": (5, 192)}


@pytest.mark.parametrize(("name", "size"), [("maxvit_rmlp_pico_rw_256", 33), ("inception_v3", 64)])
def test_a_size_that_a_network_does_not_take(name, size):
    """A cache was built of it, and its build ended in a traceback."""
    network = timm.create_model(name, num_classes=3)
    with pytest.raises(Refused, match=rf"rejects images of \[{size}, {size}\] .*change the size"):
        FeatureTaps(network, []).shapes((size, size))
    with pytest.raises(Refused, match=rf"rejects images of \[{size}, {size}\]"):
        TeacherHead.of(network, (size, size))


def test_a_network_that_answers_with_a_mapping():
    """`layers` of such a teacher ended as a bug."""
    network = timm.create_model("cifar_resnet8", num_classes=3)
    network.forward_head = lambda features: {"logits": features.mean((2, 3))}
    with pytest.raises(Refused, match=r"ResNet answers images with a dict, not with logits \[B,K\]; have it return"):
        FeatureTaps(network, ["layer1"]).shapes((32, 32))

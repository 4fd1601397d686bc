"""Taps hand out the right tensors, cut the graph where asked, and leave no trace."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

from kdcore.errors import Refused
from kdcore.reused import TeacherHead
from kdcore.taps import CLASSIFIER_INPUT, FORWARD_FEATURES, FeatureTaps, usable_taps
from tests.kdcore.tapped import NETWORKS, network


@pytest.mark.parametrize("name", NETWORKS)
def test_taps_give_the_networks_own_tensors(name):
    model, tap, images = network(name)
    model.eval()
    seen = {}
    model.get_submodule(tap).register_forward_hook(lambda module, args, output: seen.update(tap=output))
    model.get_classifier().register_forward_pre_hook(lambda module, args: seen.update(classifier=args[0]))
    logits, features = FeatureTaps(model, {tap, FORWARD_FEATURES, CLASSIFIER_INPUT})(images)
    assert features.keys() == {tap, FORWARD_FEATURES, CLASSIFIER_INPUT}
    assert features[tap] is seen["tap"]
    assert features[CLASSIFIER_INPUT] is seen["classifier"]
    assert torch.equal(logits, model(images))
    assert torch.equal(features[FORWARD_FEATURES], model.forward_features(images))
    assert torch.equal(
        features[CLASSIFIER_INPUT] @ model.get_classifier().weight.T + model.get_classifier().bias, logits
    )


def test_shapes_of_a_known_network_and_no_state_changed():
    model, _, _ = network("cifar_resnet8")
    before = copy.deepcopy(model.state_dict())
    taps = FeatureTaps(model.train(), {"layer1", "layer3", FORWARD_FEATURES, CLASSIFIER_INPUT}, detach_head_at="layer3")
    assert taps.shapes((32, 48)) == {
        "layer1": (16, 32, 48),
        "layer3": (64, 8, 12),
        FORWARD_FEATURES: (64, 8, 12),
        CLASSIFIER_INPUT: (64,),
    }
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("place", ["middle", FORWARD_FEATURES, CLASSIFIER_INPUT])
def test_a_detached_head_keeps_the_labels_from_the_backbone(name, place):
    model, middle, images = network(name)
    tap = middle if place == "middle" else place
    taps = FeatureTaps(model, (), detach_head_at=tap)
    taps.shapes(tuple(images.shape[2:]))

    logits, features = taps(images)
    logits.logsumexp(dim=1).sum().backward()
    reached_by_logits = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    model.zero_grad(set_to_none=True)
    _, features = taps(images)
    features[tap].square().sum().backward()
    reached_by_features = {n for n, p in model.named_parameters() if p.grad is not None}

    assert reached_by_logits
    assert reached_by_features
    assert not reached_by_logits & reached_by_features
    first = next(iter(dict(model.named_parameters())))
    assert first in reached_by_features
    classifier = {n for n, p in model.named_parameters() if any(p is q for q in model.get_classifier().parameters())}
    assert classifier <= reached_by_logits


def test_without_detaching_the_labels_reach_the_backbone():
    model, tap, images = network("cifar_resnet8")
    logits, _ = FeatureTaps(model, {tap})(images)
    logits.logsumexp(dim=1).sum().backward()
    assert model.conv1.weight.grad.any()


class Odd(nn.Module):
    """A network with every kind of module that cannot be tapped, and some that can."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1)
        self.overwritten = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(4, 4, 1)
        self.pair = nn.MaxPool2d(1, return_indices=True)
        self.never = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 5)
        self.num_classes, self.passes = 5, 0

    def forward(self, images):
        self.passes += 1
        features = self.twice(self.twice(self.act(self.overwritten(self.first(images)))))
        return self.fc(self.pair(features)[0].mean(dim=(2, 3)))


def test_the_taps_that_can_be_used_are_found_in_one_pass():
    """As if each were tried alone."""
    model, alone = Odd(), {}
    names = ["absent", *(name for name, _ in model.named_modules() if name), FORWARD_FEATURES, CLASSIFIER_INPUT]
    for name in names:
        try:
            alone[name] = FeatureTaps(model, {name}).shapes((6, 8))[name]
        except Refused:
            continue
    model.passes = 0
    found = usable_taps(model, names, (6, 8))
    assert model.passes == 1
    assert list(found.items()) == list(alone.items())
    assert found == {"first": (4, 6, 8), "act": (4, 6, 8), "fc": (5,), "classifier_input": (4,)}
    fresh = Odd()
    usable_taps(fresh, names, (6, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in fresh.modules())


def test_hooks_do_nothing_outside_a_call_of_the_taps():
    model, tap, images = network("cifar_resnet8")
    untouched = copy.deepcopy(model)
    FeatureTaps(model, {CLASSIFIER_INPUT}, detach_head_at=tap)
    logits = model(images)
    assert torch.equal(logits, untouched(images))
    logits.logsumexp(dim=1).sum().backward()
    assert model.conv1.weight.grad.any()  # not detached: this is no call of the taps


def test_a_moving_average_copy_stays_apart_from_the_taps():
    model, tap, images = network("cifar_resnet8")
    plain = copy.deepcopy(model).eval()
    taps = FeatureTaps(model, {CLASSIFIER_INPUT}, detach_head_at=tap)
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        model.fc.bias += 1
    assert torch.equal(ema.module(images), plain(images))
    ema.update(model)
    torch.testing.assert_close(ema.module(images), plain(images) + 0.5)
    _, features = taps(images)
    assert features.keys() == {CLASSIFIER_INPUT, tap}


def test_removed_taps_are_gone():
    model, tap, images = network("cifar_resnet8")
    taps = FeatureTaps(model, {tap, CLASSIFIER_INPUT})
    taps.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(Refused, match="does not run"):
        taps(images)


def test_two_sets_of_taps_on_one_network_do_not_meet():
    model, tap, images = network("cifar_resnet8")
    first, second = FeatureTaps(model, {tap}), FeatureTaps(model, {"layer1"})
    assert first(images)[1].keys() == {tap}
    assert second(images)[1].keys() == {"layer1"}


def test_a_probe_moves_nothing():
    """EfficientAD#13: a forward pass before the training moved the batch statistics of the network that was given."""
    network = timm.create_model("resnet10t", num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    FeatureTaps(network, ["layer1"]).shapes((32, 32))
    TeacherHead.of(network, (32, 32))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

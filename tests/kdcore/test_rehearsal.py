"""What does not fit is found on two random images, before anything costs time, and named."""

from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F

from kdcore.batch import Needs
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import check_network, rehearse
from kdcore.taps import FeatureTaps
from kdcore.terms import Term, parse_term
from kdcore.terms.logits import cross_entropy

PAIRS = [{"student": "layer3", "teacher": "blocks.1"}]


SIZES = [("vit_tiny_patch16_224", 48), ("inception_v3", 64), ("maxvit_rmlp_pico_rw_256", 33)]


def make(student, *terms, teacher=None, size=(32, 32)):
    terms = [parse_term(term) for term in terms]
    needs = Needs.union(term.needs() for term in terms)
    online = OnlineTeacher(teacher, needs) if teacher is not None else None
    return Distiller(student, terms, image_size=size, num_samples=8, teacher=online)


def cnn():
    return timm.create_model("cifar_resnet8", num_classes=3)


def test_what_fits_is_let_through():
    make_and_rehearse = make(cnn(), {"term": "ce", "weight": 1})
    rehearse(make_and_rehearse, (32, 32), 8, mixes=False)
    rehearse(make_and_rehearse, (32, 32), 8, mixes=True)


@pytest.mark.parametrize("term", ["at", "feature_mse", "vid"])
def test_tokens_against_a_map_name_taps_and_kinds(term):
    """25 of timm's 109 families: found after two minutes on Ray, at the first step."""
    vit = timm.create_model("test_vit", num_classes=3, img_size=32, patch_size=8)

    def try_out():
        distiller = make(cnn(), {"term": term, "weight": 1, "pairs": PAIRS}, teacher=vit)
        rehearse(distiller, (32, 32), 8, mixes=False)

    with pytest.raises(Refused) as refused:
        try_out()
    text = str(refused.value)
    assert "student layer3: map [64,8,8]" in text
    assert "teacher blocks.1: tokens [17,64]" in text
    assert term in text


def test_a_tap_that_training_alone_overwrites_is_refused():
    """torchvision's EfficientNets have a dropout in place behind their pooling, which evaluation leaves out."""
    student = cnn()
    student.layer3.register_forward_hook(lambda module, args, out: F.dropout(out, 0.5, module.training, inplace=True))
    term = {"term": "feature_mse", "weight": 1, "pairs": [{"student": "layer3.0", "teacher": "layer3"}]}
    with pytest.raises(Refused, match=r"tap 'layer3.0' is overwritten in place"):
        rehearse(make(student, term, teacher=cnn()), (32, 32), 8, mixes=False)


def test_batch_norm_with_one_value_a_channel():
    """pytorch: Expected more than 1 value per channel when training."""
    student = timm.create_model("test_resnet", num_classes=3)
    rehearse(make(student, {"term": "ce", "weight": 1}), (32, 32), 2, mixes=False)
    with pytest.raises(Refused, match=r"1 images of 32x32 at a time \(Expected more than 1 value per channel"):
        rehearse(make(student, {"term": "ce", "weight": 1}), (32, 32), 1, mixes=False)


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_a_size_that_a_network_does_not_take(name, size):
    with pytest.raises(Refused, match=f"cannot take 2 images of {size}x{size}"):
        check_network(timm.create_model(name, num_classes=3), (size, size))


def test_a_network_of_grey_images():
    """It was told to change the size of the views."""
    network = timm.create_model("resnet10t", num_classes=3, in_chans=1)
    for look in (check_network, lambda network, size: FeatureTaps(network, []).shapes(size)):
        with pytest.raises(Refused, match=r"; images have 3 channels, grey ones too: have its first layer take 3$"):
            look(network, (32, 32))


def test_a_network_without_logits():
    with pytest.raises(Refused, match="not with logits"):
        check_network(timm.create_model("test_resnet", features_only=True), (32, 32))


def test_a_network_without_a_head_that_has_no_features():
    """Its last layer has no outputs, and not its inputs: what its features would be judged by is chance."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    network.num_classes = 0
    check_network(network, (8, 8))
    network[1] = torch.nn.Linear(192, 0)
    with pytest.raises(Refused, match="features of width 0; have it return its features for num_classes=0"):
        check_network(network, (8, 8))


class WithAnother(torch.nn.Module):
    """Gives the logits of a second classifier too while it is trained."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, images):
        logits = self.layer(images.mean((2, 3)))
        return (logits, logits) if self.training else logits


def test_a_network_that_trains_with_more_than_logits():
    """In evaluation, it gives these alone."""
    student = WithAnother()
    check_network(student, (8, 8))
    with pytest.raises(Refused, match=r"WithAnother answers images with a tuple in training, .*these alone"):
        rehearse(make(student, {"term": "ce", "weight": 1.0}, size=(8, 8)), (8, 8), 4, mixes=False)


class Own(Term):
    """A loss of a user, which a field makes wrong. Its name has no default, so that it stays out of the registry."""

    form: str

    def loss(self, inputs):
        value = cross_entropy(inputs.student_logits, inputs.labels)
        forms = {
            "right": lambda: value,
            "mean": value.mean,
            "column": lambda: value[:, None],
            "first": lambda: value[:1],
            "inf": lambda: value / 0,
            "pair": lambda: (value, value),
            "none": lambda: None,
            "detached": value.detach,
            "wrong": lambda: (inputs.student_logits.argmax(1) != inputs.labels).float(),
            "whole": lambda: (inputs.student_logits.argmax(1) != inputs.labels).long(),
            "tap": lambda: inputs.student_features["layer3"].flatten(1).mean(1),
            "teacher": lambda: inputs.teacher_logits.mean(1),
            "attribute": lambda: inputs.logits.mean(1),
        }
        return forms[self.form]()


def rehearse_own(form, device="cpu"):
    ce, own = parse_term({"term": "ce", "weight": 1}), Own(term="own", weight=1, form=form)
    with torch.device(device):
        rehearse(Distiller(cnn(), [own, ce], image_size=(32, 32), num_samples=8), (32, 32), 8, mixes=False)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("mean", r"it gives a tensor \[\], not one value an image \[2\]; do not reduce the loss over the batch$"),
        ("column", r"it gives a tensor \[2, 1\], not one value an image \[2\]; reduce it over every dimension but"),
        ("first", r"it gives a tensor \[1\], not one value an image \[2\]; keep every image of the batch$"),
        ("pair", r"it gives a tuple; return a tensor of one value an image \[2\]$"),
        ("none", "it gives a NoneType; return a tensor"),
        (
            "detached",
            r"its loss \(float32\) has no gradient, so the student would learn nothing from it; compute it from",
        ),
        ("wrong", r"its loss \(float32\) has no gradient"),
        ("whole", r"its loss \(int64\) has no gradient"),
    ],
)
def test_a_loss_that_is_no_value_an_image_with_a_gradient(form, reason):
    """They trained, without a word."""
    rehearse_own("right")
    with pytest.raises(Refused, match=f"^term own: {reason}"):
        rehearse_own(form)


def test_a_gradient_is_missed_by_shapes_alone():
    with pytest.raises(Refused, match=r"^term own: its loss \(float32\) has no gradient"):
        rehearse_own("wrong", "meta")


def test_a_loss_that_is_not_finite():
    reason = "its loss of random images is inf; correct its fields, or the weights of the networks"
    with pytest.raises(Refused, match=f"^term own: {reason}$"):
        rehearse_own("inf")


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("tap", "KeyError: 'layer3'"),
        ("attribute", "AttributeError: .* has no attribute 'logits'"),
        ("teacher", "AssertionError: the term did not declare teacher_logits"),
    ],
)
def test_what_a_users_loss_raises_is_said_with_its_line(form, reason):
    """It was called a fault of the project, or blamed on the choice of taps."""
    with pytest.raises(
        Refused, match=rf"^term own at .*test_rehearsal\.py:\d+: {reason}; correct the loss: .*\(nothing"
    ):
        rehearse_own(form)


class Weighted(Term):
    """A loss of a user whose weights have the shape of a tap that it has not declared."""

    def build(self, context):
        return torch.nn.Linear(context.student_shapes["layer3"][0], 1)


def test_so_is_what_is_raised_where_its_weights_are_made():
    with pytest.raises(Refused, match=r"^term own at .*test_rehearsal\.py:\d+: KeyError: 'layer3'; correct the loss"):
        Distiller(cnn(), [Weighted(term="own", weight=1)], image_size=(32, 32), num_samples=8)


def test_a_loss_of_nothing_that_trains_may_be_without_a_gradient():
    """A frozen student's, which some other loss of its own weights trains."""
    student = cnn().requires_grad_(False)
    own = Own(term="own", weight=1, form="right")
    rehearse(Distiller(student, [own], image_size=(32, 32), num_samples=8), (32, 32), 8, mixes=False)


def test_a_loss_of_ours_that_fails_keeps_its_traceback(monkeypatch):
    def fails(term, inputs):
        raise KeyError("no declared tap")

    distiller = make(cnn(), {"term": "ce", "weight": 1})
    monkeypatch.setattr(type(distiller.terms["ce"]), "loss", fails)
    with pytest.raises(KeyError, match="no declared tap"):
        rehearse(distiller, (32, 32), 8, mixes=False)


def test_a_fault_of_ours_keeps_its_traceback():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(1, 1)

        def forward(self, images):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check_network(Wrong(), (8, 8))


class OfBoth(Own):
    """A loss of a user on a tap and on the logits."""

    def needs(self):
        return Needs(student_taps=frozenset({"layer3"}))

    def loss(self, inputs):
        features = inputs.student_features["layer3"].flatten(1).mean(1)
        return features if self.form == "tap" else features + cross_entropy(inputs.student_logits, inputs.labels)


class SaysBoth(OfBoth):
    reads_logits: ClassVar[bool] = True


def test_logits_beside_taps_are_declared():
    """Whether a student's accuracy is measured hangs on it; a term without taps reads logits in any case."""

    def try_out(term):
        rehearse(Distiller(cnn(), [term], image_size=(32, 32), num_samples=8), (32, 32), 8, mixes=False)

    says, tap = SaysBoth(term="own", weight=1, form="both"), OfBoth(term="own", weight=1, form="tap")
    for term in (says, tap):
        try_out(term)
    assert (says.teaches_classifier, tap.teaches_classifier) == (True, False)
    for device in ("cpu", "meta"):
        with torch.device(device), pytest.raises(Refused, match=r"term own.*say so in its class: reads_logits"):
            try_out(OfBoth(term="own", weight=1, form="both"))


def test_a_tap_that_is_the_classifier_is_a_tap():
    """Its tensor is the logits themselves, which the term reads as features."""
    pairs = [{"student": "fc", "teacher": "fc"}]
    distiller = make(cnn(), {"term": "sp", "weight": 1, "pairs": pairs}, teacher=cnn())
    rehearse(distiller, (32, 32), 8, mixes=False)

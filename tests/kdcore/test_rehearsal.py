"""What does not fit is found on two random images, before anything costs time, and named."""

import pytest
import timm
import torch

from kdcore.batch import Needs
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.rehearsal import check_network, rehearse
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


def test_a_network_without_logits():
    with pytest.raises(Refused, match="not with logits"):
        check_network(timm.create_model("test_resnet", features_only=True), (32, 32))


class Own(Term):
    """A loss of a user, which a field makes wrong. Its name has no default, so that it stays out of the registry."""

    form: str

    def loss(self, inputs):
        value = cross_entropy(inputs.student_logits, inputs.labels)
        forms = {
            "right": value,
            "mean": value.mean(),
            "column": value[:, None],
            "inf": value / 0,
            "pair": (value, value),
        }
        return forms[self.form]


def rehearse_own(form):
    ce, own = parse_term({"term": "ce", "weight": 1}), Own(term="own", weight=1, form=form)
    rehearse(Distiller(cnn(), [ce, own], image_size=(32, 32), num_samples=8), (32, 32), 8, mixes=False)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("mean", r"it gives a tensor \[\], not one value an image \[2\]; do not reduce the loss over the batch$"),
        ("column", r"it gives a tensor \[2, 1\], not one value an image \[2\]"),
        ("pair", "it gives a tuple, not one value an image"),
        ("inf", "its loss of random images is inf; correct its fields, or the weights of the networks$"),
    ],
)
def test_a_loss_that_is_no_value_an_image(form, reason):
    """They trained, without a word."""
    rehearse_own("right")
    with pytest.raises(Refused, match=f"^term own: {reason}"):
        rehearse_own(form)


def test_a_fault_of_ours_keeps_its_traceback():
    class Wrong(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(1, 1)

        def forward(self, images):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        check_network(Wrong(), (8, 8))

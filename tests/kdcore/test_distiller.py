"""The distiller: what a step computes, what its terms see, and what never reaches the student or the teacher."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from kdcore.batch import Needs, TeacherOutputs
from kdcore.distiller import Distiller
from kdcore.errors import Refused
from kdcore.online_teacher import OnlineTeacher
from kdcore.terms import Term, TermInputs, parse_term
from kdcore.terms.base import tap_askers
from tests.kdcore.distillers import CE, FEATURES, KD, SIZE, K, Probe, batch, gradients, make, network, probe


def test_the_loss_is_the_weighted_sum_of_the_terms():
    distiller = make(CE | {"weight": 0.3}, KD | {"weight": 0.7}, teacher=network(9))
    twin, teacher = copy.deepcopy(distiller.student).train(), network(9).eval()
    given = batch()
    output = distiller(given)
    z, v = twin(given.images), teacher(given.images)
    ce = F.cross_entropy(z, given.labels)
    kd = 16 * F.kl_div((z / 4).log_softmax(1), (v / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(output.loss, 0.3 * ce + 0.7 * kd)
    torch.testing.assert_close(output.terms, {"ce": ce.detach(), "kd": kd.detach()})
    torch.testing.assert_close(output.student_logits, z.detach())
    torch.testing.assert_close(output.teacher_logits, v.detach())
    assert output.loss.requires_grad
    assert not any(t.requires_grad for t in (*output.terms.values(), output.student_logits, output.teacher_logits))


def test_terms_of_weight_0_are_left_out_with_all_that_they_need():
    nonsense = FEATURES | {"weight": 0, "pairs": [{"student": "no such tap", "teacher": "nor this"}]}
    distiller = make(CE, KD | {"weight": 0}, nonsense)
    assert list(distiller.terms) == list(distiller.extras) == ["ce"]
    assert distiller.needs == Needs(labels=True)
    assert distiller(batch()).teacher_logits is None


def test_a_method_without_a_positive_weight_is_refused():
    with pytest.raises(Refused, match="no term with a weight above 0"):
        make(CE | {"weight": 0})


@pytest.mark.parametrize(("epoch", "share"), [(0.0, 0.0), (1.0, 0.25), (2.5, 0.625), (4.0, 1.0), (9.0, 1.0)])
def test_a_weight_warms_up_over_its_epochs(epoch, share):
    distiller = make(CE, KD | {"weight": 2, "warmup_epochs": 4}, teacher=network(9))
    output = distiller(batch(epoch=epoch))
    torch.testing.assert_close(output.loss.detach(), output.terms["ce"] + 2 * share * output.terms["kd"])


def test_a_weight_decays_to_the_end_of_the_run():
    decaying = KD | {"weight": 2, "decay_from_epoch": 30}
    distiller = make(CE, decaying, teacher=network(9), num_epochs=100)
    output = distiller(batch(epoch=65.0))
    torch.testing.assert_close(output.loss.detach(), output.terms["ce"] + output.terms["kd"])
    with pytest.raises(Refused, match="the run has 30 epochs"):
        make(CE, decaying, teacher=network(9), num_epochs=30)


def test_a_second_term_of_a_kind_gets_a_number():
    distiller = make(CE, KD, KD | {"temperature": 1}, teacher=network(9))
    assert list(distiller.terms) == ["ce", "kd", "kd_2"]
    terms = distiller(batch()).terms
    assert terms["kd"] != terms["kd_2"]


def test_nothing_that_is_done_to_the_distiller_reaches_the_teacher():
    teacher = network(9)
    distiller = make(CE, FEATURES, teacher=teacher)
    before = copy.deepcopy(teacher.state_dict())
    distiller.train().requires_grad_(True).to(torch.float64)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert distiller.student.training
    distiller.to(torch.float32)
    for _ in range(2):
        distiller(batch()).loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not set(distiller.modules()) & set(teacher.modules())
    assert {name.split(".")[0] for name in distiller.state_dict()} == {"student", "extras"}


def test_a_teacher_that_was_woken_up_is_noticed():
    teacher = network(9)
    distiller = make(KD, teacher=teacher)
    teacher.train()
    with pytest.raises(AssertionError, match="training mode"):
        distiller(batch())


def test_extras_are_trained_and_never_part_of_the_student():
    distiller = make(CE, FEATURES, teacher=network(9))
    extras = {name for name, _ in distiller.named_parameters() if name.startswith("extras.feature_mse.")}
    assert extras
    grads = gradients(distiller, distiller(batch()).loss)
    assert all(grads[name].any() for name in extras)
    assert distiller.student.state_dict().keys() == network(0).state_dict().keys()


def test_targets_of_a_batch_bypass_the_teacher_and_give_the_same_loss():
    distiller = make(CE, KD, FEATURES, teacher=network(9))
    online = distiller(batch())
    targets = distiller.teacher(batch())
    calls = []
    distiller.teacher.model.register_forward_hook(lambda *_: calls.append(1))
    distiller.teacher.model.forward_features = lambda images: pytest.fail("the teacher was asked")
    replayed = make(CE, KD, FEATURES, teacher_shapes={"layer2": torch.Size((32, 8, 8))})
    replayed.load_state_dict(distiller.state_dict())
    for one in (distiller, replayed):
        torch.testing.assert_close(one(batch().with_targets(targets)).loss, online.loss, rtol=0, atol=0)
    assert not calls


def test_without_teacher_and_cache_the_step_is_refused():
    with pytest.raises(Refused, match="neither a teacher nor a cache"):
        make(CE, KD)(batch())


def test_the_students_input_gradient_has_a_graph_that_trains_it():
    distiller = make({"term": "kdiga", "weight": 1}, teacher=network(9).double()).double()
    given = dataclasses.replace(batch(), images=batch().images.double())
    loss = distiller(given).loss
    grads = gradients(distiller, loss)
    length = torch.stack([g.square().sum() for g in grads.values()]).sum()
    # The loss must fall as the gradient says, so the derivative of the derivative is the right one.
    with torch.no_grad():
        for name, parameter in distiller.named_parameters():
            if name in grads:
                parameter -= 1e-6 * grads[name] / length
    assert (distiller(given).loss - loss).item() == pytest.approx(-1e-6, rel=1e-2)
    assert grads["student.conv1.weight"].any()


def test_terms_see_the_batch_as_it_is():
    term = probe(student_taps=frozenset({"layer1"}), sample_ids=True, student_input_gradient=True)
    labels = torch.arange(100)
    distiller = make(CE, term, sample_labels=labels)
    given = batch(soft=True, epoch=2.75)
    distiller(given)
    inputs, context = term.seen["inputs"], term.seen["context"]
    assert inputs.labels is given.labels
    assert inputs.sample_ids is given.sample_ids
    assert inputs.epoch == 2.75
    assert inputs.teacher == TeacherOutputs()
    assert inputs.student_features.keys() == {"layer1"}
    assert inputs.student_input_gradient.shape == given.images.shape
    assert inputs.student_input_gradient.requires_grad
    assert context.sample_labels is labels
    assert context.student_shapes == {"layer1": (16, 16, 16)}
    assert (context.num_classes, context.num_samples) == (K, 100)


def test_the_context_knows_the_shapes_of_the_teacher():
    term = probe(teacher_taps=frozenset({"layer3"}))
    make(term, teacher=network(9, "cifar_resnet8x4"))
    assert term.seen["context"].teacher_shapes == {"layer3": (256, 4, 4)}


def test_mixed_labels_reach_the_cross_entropy_and_are_refused_by_terms_that_need_hard_ones():
    given = batch(soft=True)
    distiller = make(CE)
    z = copy.deepcopy(distiller.student)(given.images)
    torch.testing.assert_close(distiller(given).loss, -(given.labels * z.log_softmax(1)).sum(dim=1).mean())
    with pytest.raises(Refused, match=r"^probe has no meaning for mixed labels"):
        make(CE, probe(hard_labels=True))(given)


def test_a_detached_head_trains_on_labels_and_the_backbone_on_features():
    class OnFeatures(Probe):
        def loss(self, inputs: TermInputs) -> Tensor:
            return inputs.student_features["layer3"].square().flatten(1).mean(dim=1)

    def term(**needs: Any) -> Term:
        declared = Needs(student_taps=frozenset({"layer3"}), **needs)
        return OnFeatures(term="on_features", weight=1, declared=declared, seen={})

    both = make(CE, term(detach_head_at="layer3"))
    found = gradients(both.student, both(batch()).loss)
    only_features = make(term())
    backbone = gradients(only_features.student, only_features(batch()).loss)
    only_labels = make(CE)
    head = gradients(only_labels.student, only_labels(batch()).loss)
    assert found.keys() == backbone.keys() | {"fc.weight", "fc.bias"}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, head[name] if name.startswith("fc.") else backbone[name])


def test_under_autocast_the_loss_is_float32():
    distiller = make(CE, KD, FEATURES, teacher=network(9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = distiller(batch())
    assert output.student_logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, distiller(batch()).loss, rtol=0.05, atol=0.05)


def test_a_moving_average_of_the_student_is_a_network_of_its_own():
    distiller = make(CE, FEATURES, teacher=network(9))
    ema = ModelEmaV3(distiller.student, decay=0.9)
    distiller(batch()).loss.backward()
    ema.update(distiller.student, step=1)
    expected = copy.deepcopy(distiller.student).eval()(batch().images)
    torch.testing.assert_close(ema.module(batch().images), expected)  # the first update copies
    assert not ema.module.training
    assert ema.module.state_dict().keys() == network(0).state_dict().keys()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (FEATURES | {"pairs": [{"student": "layer4", "teacher": "layer2"}]}, "feature_mse, pairs: the student"),
        (FEATURES | {"pairs": [{"student": "layer2", "teacher": "layer4"}]}, "feature_mse, pairs: the teacher"),
        ({"term": "nd", "weight": 1, "student_tap": "layer4"}, "nd, student_tap: the student"),
        ({"term": "nd", "weight": 1, "teacher_tap": "layer4"}, "nd, teacher_tap: the teacher"),
    ],
)
def test_a_tap_that_is_not_there_says_whose_it_is(fields, reason):
    term = parse_term(fields)
    asked_by = tap_askers({term.term: term}, "teacher")
    with pytest.raises(Refused, match=rf"^term {reason} cifar_resnet8 has no tap 'layer4'; did you mean layer"):
        Distiller(
            network(0),
            [parse_term(CE), term],
            image_size=SIZE,
            num_samples=8,
            teacher=OnlineTeacher(network(1), term.needs(), asked_by=asked_by),
        )


OUT_OF_ORDER = {
    "feature_only": "'layer1' runs before 'layer3', so labels would reach .* \\(layer1, layer2, layer3\\), or give",
    "reviewkd": "student runs layer1, layer2, layer3, and the pairs are layer3, layer2, layer1; list them in that",
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_pairs_out_of_order_are_refused_where_the_last_is_taken_for_the_deepest(name):
    """Labels went into the backbone between them, and stages were fused with shallower ones."""
    taps = [{"student": f"layer{number}", "teacher": f"layer{number}"} for number in (1, 2, 3)]
    term = {"term": name, "weight": 1}
    make(CE, {**term, "pairs": taps}, teacher=network(1))
    with pytest.raises(Refused, match=f"^term {name} .*{OUT_OF_ORDER[name]}"):
        make(CE, {**term, "pairs": taps[::-1]}, teacher=network(1))
    with torch.device("meta"), pytest.raises(Refused, match=OUT_OF_ORDER[name]):  # as a run is checked
        make(CE, {**term, "pairs": taps[::-1]}, teacher=network(1))


def test_a_named_place_of_the_head_needs_no_order():
    taps = [{"student": f"layer{number}", "teacher": f"layer{number}"} for number in (3, 2, 1)]
    term = {"term": "feature_only", "weight": 1, "pairs": taps, "detach_head_at": "layer3"}
    distiller = make({**CE, "weight": 1}, {**term, "weight": 1e-30}, teacher=network(1))
    found = gradients(distiller.student, distiller(batch()).loss)
    assert all(gradient.abs().max() < 1e-20 for name, gradient in found.items() if not name.startswith("fc"))


@pytest.mark.parametrize(
    "term",
    [{**CE, "warmup_epochs": 2}, {**CE, "decay_from_epoch": 1}, {"term": "diffkd_logits", "weight": 1}],
    ids=["warm-up", "decay", "draws"],
)
def test_a_batch_without_an_epoch_is_refused_where_something_goes_by_it(term):
    """It was taken for the first: a warm-up stayed at 0, and every epoch drew the same."""
    distiller = make(term, teacher=network(1), num_epochs=4)
    with pytest.raises(Refused, match=f"^{term['term']} goes by the epoch.*; give Batch"):
        distiller(batch())
    assert distiller(batch(epoch=1.5)).loss.isfinite()
    given = make(CE)
    assert torch.equal(given(batch()).loss, make(CE)(batch(epoch=3.0)).loss)  # nothing goes by it

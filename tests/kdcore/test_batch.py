"""The contracts: how needs add up, and the forms that labels come in."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from kdcore.batch import Batch, Needs, TeacherOutputs, soft_labels
from kdcore.errors import Refused


def batch(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 3, 4, 4), labels, torch.arange(len(labels)), torch.zeros(len(labels)))


def test_needs_add_up_field_by_field():
    ours = Needs(teacher_logits=True, teacher_taps=frozenset({"layer1"}), student_taps=frozenset({"a"}))
    theirs = Needs(
        teacher_taps=frozenset({"layer2"}), sample_ids=True, class_means=frozenset({"m"}), detach_head_at="b"
    )
    assert ours | theirs == Needs(
        teacher_logits=True,
        teacher_taps=frozenset({"layer1", "layer2"}),
        student_taps=frozenset({"a"}),
        class_means=frozenset({"m"}),
        sample_ids=True,
        detach_head_at="b",
    )
    assert theirs | ours == ours | theirs
    assert Needs.union([]) == Needs()
    assert Needs.union([ours, theirs, ours]) == ours | theirs


def test_every_need_survives_the_union():
    for field in dataclasses.fields(Needs):
        value = {"bool": True, "frozenset[str]": frozenset({"x"}), "str | None": "x"}[str(field.type)]
        one = Needs(**{field.name: value})
        assert one | Needs() == Needs() | one == one != Needs()


def test_two_places_to_detach_at_are_refused_and_one_place_twice_is_not():
    with pytest.raises(Refused, match=r"'layer2' and 'layer3'.*same deepest tap"):
        Needs(detach_head_at="layer2") | Needs(detach_head_at="layer3")
    assert (Needs(detach_head_at="layer2") | Needs(detach_head_at="layer2")).detach_head_at == "layer2"


@pytest.mark.parametrize(
    "needs",
    [
        Needs(teacher_logits=True),
        Needs(teacher_taps=frozenset({"t"})),
        Needs(teacher_classifier=True),
        Needs(teacher_input_gradient=True),
        Needs(class_means=frozenset({"t"})),
    ],
)
def test_what_reads_a_teacher_says_so(needs):
    assert needs.reads_teacher


def test_what_reads_only_the_student_needs_no_teacher():
    student_side = Needs(
        student_taps=frozenset({"s"}),
        student_input_gradient=True,
        sample_ids=True,
        hard_labels=True,
        detach_head_at="s",
    )
    assert not student_side.reads_teacher


def test_of_several_methods_answers_each_reads_its_own():
    needs = Needs(teacher_logits=True, teacher_taps=frozenset({"b"}), student_taps=frozenset({"s"}), sample_ids=True)
    answers = TeacherOutputs(
        logits=torch.zeros(1, 2), features={tap: torch.ones(1, 3) for tap in "abc"}, input_gradient=torch.zeros(1)
    )
    assert needs.of_teacher == Needs(teacher_logits=True, teacher_taps=frozenset({"b"}))
    mine = needs.select(answers)
    assert mine.logits is answers.logits
    assert mine.features == {"b": answers.features["b"]}
    assert mine.input_gradient is None
    with pytest.raises(KeyError):
        Needs(teacher_taps=frozenset({"d"})).select(answers)


def test_hard_labels_are_the_larger_share():
    hard = torch.tensor([2, 0])
    assert batch(hard).hard_labels is hard
    assert batch(torch.tensor([[0.4, 0.6, 0.0], [0.9, 0.0, 0.1]])).hard_labels.tolist() == [1, 0]


def test_soft_labels_are_distributions():
    assert soft_labels(torch.tensor([2, 0]), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    mixed = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert soft_labels(mixed, 2).dtype == torch.float32
    assert soft_labels(mixed, 2).tolist() == [[0.25, 0.75]]


def test_targets_come_with_a_copy_of_the_batch():
    plain = batch(torch.tensor([1, 0, 1]))
    targets = TeacherOutputs(logits=torch.zeros(3, 2))
    assert len(plain) == 3
    assert plain.with_targets(targets).targets is targets
    assert plain.targets is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.views = torch.ones(2)


@pytest.mark.parametrize(
    ("needs", "reads"),
    [
        (Needs(teacher_logits=True, teacher_taps=frozenset({"t"}), sample_ids=True), False),
        (Needs(labels=True), True),
        (Needs(hard_labels=True), True),
        (Needs(class_means=frozenset({"t"})), True),
        (Needs(class_similarity=True), True),
        (Needs(student_input_gradient=True), True),
        (Needs(teacher_input_gradient=True), True),
    ],
)
def test_what_images_without_labels_do_not_have(needs, reads):
    assert needs.reads_labels is reads

"""CRD's bank, negatives and loss."""

from __future__ import annotations

import math

import pytest
import torch

from kdcore.batch import TeacherOutputs
from kdcore.errors import Refused
from kdcore.terms import TermContext, TermInputs, parse_term
from kdcore.terms.crd import initial_banks, means_of_equal
from kdcore.terms.draws import Draws

N, K, NEGATIVES = 30, 3, 8
LABELS = torch.tensor([0] * 5 + [2] * 10 + [1] * 12 + [0] * 3)  # unequal classes, not in order


def module(**fields):
    torch.manual_seed(0)
    term = parse_term({"term": "crd", "weight": 0.8, "dim": 4, "num_negatives": NEGATIVES, **fields})
    return term.build(context())


def context(sample_labels=LABELS):
    shape = torch.Size([6])
    return TermContext({"classifier_input": shape}, {"classifier_input": shape}, K, N, sample_labels=sample_labels)


def inputs(sample_ids, seed=1, epoch=0.0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, len(sample_ids), 6, generator=generator)
    return TermInputs(
        labels=LABELS[sample_ids],
        student_logits=torch.zeros(len(sample_ids), K),
        teacher=TeacherOutputs(features={"classifier_input": teacher}),
        student_features={"classifier_input": student.requires_grad_(True)},
        sample_ids=torch.tensor(sample_ids),
        epoch=epoch,
    )


def unit(v):
    return v / v.norm()


def test_the_loss_is_the_restated_one():
    crd, batch = module(), inputs([4, 17, 29])
    banks, negatives = crd.banks.clone(), crd.draw_negatives(batch)
    value = crd(batch)

    student = [unit(crd.student_embedding(x)) for x in batch.student_features["classifier_input"]]
    teacher = [unit(crd.teacher_embedding(x)) for x in batch.teacher.features["classifier_input"]]
    expected = [0.0, 0.0, 0.0]
    for anchors, bank in ((student, banks[1]), (teacher, banks[0])):
        rows = [[4, *negatives[0].tolist()], [17, *negatives[1].tolist()], [29, *negatives[2].tolist()]]
        scores = [[math.exp((a @ bank[j]).item() / 0.07) for j in row] for a, row in zip(anchors, rows, strict=True)]
        constant = sum(map(sum, scores)) / (3 * (NEGATIVES + 1)) * N
        mass = NEGATIVES / N
        for i, (positive, *others) in enumerate(scores):
            expected[i] -= math.log(positive / constant / (positive / constant + mass + 1e-7))
            expected[i] -= sum(math.log(mass / (o / constant + mass + 1e-7)) for o in others)
    assert value.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_bank_keeps_a_share_of_itself_and_goes_back_to_length_1(momentum):
    crd, batch = module(momentum=momentum), inputs([4, 17, 29])
    before = crd.banks.clone()
    crd(batch)
    crd.end_step()
    for bank, layer, features in (
        (0, crd.student_embedding, batch.student_features),
        (1, crd.teacher_embedding, batch.teacher.features),
    ):
        for row, sample in enumerate([4, 17, 29]):
            new = unit(layer(features["classifier_input"][row]))
            expected = unit(momentum * before[bank, sample] + (1 - momentum) * new)
            torch.testing.assert_close(crd.banks[bank, sample], expected.detach())
    untouched = [i for i in range(N) if i not in (4, 17, 29)]
    assert torch.equal(crd.banks[:, untouched], before[:, untouched])


def test_only_training_keeps_embeddings_and_without_their_graph():
    crd = module()
    crd.eval()(inputs([4, 17, 29]))
    assert crd.kept == []
    crd.train()(inputs([4, 17, 29]))
    ((sample_ids, embeddings),) = crd.kept
    assert sample_ids.tolist() == [4, 17, 29]
    assert not embeddings.requires_grad


def test_banks_begin_by_the_seed():
    assert torch.equal(initial_banks(N, 4, seed=1), initial_banks(N, 4, seed=1))
    assert not torch.equal(initial_banks(N, 4, seed=0), initial_banks(N, 4, seed=1))


def test_a_steps_micro_batches_see_the_bank_of_the_step_before():
    """Whatever their order, and as one micro-batch would; the bank has all of their samples once the step ends."""
    first, second = inputs([4, 17, 29]), inputs([5, 0], seed=2)
    crd, other = module(), module()
    for one in (crd, other):
        one(inputs([1, 2, 3]))  # which fixes the constants
    before = crd.banks.clone()
    losses, others = (crd(first), crd(second)), (other(second), other(first))
    assert all(torch.equal(one, same) for one, same in zip(losses, reversed(others), strict=True))
    assert torch.equal(crd.banks, before)
    for one in (crd, other):
        one.end_step()
    assert torch.equal(crd.banks, other.banks)
    moved = (crd.banks != before).any(dim=2).all(dim=0).nonzero().flatten()
    assert moved.tolist() == [0, 1, 2, 3, 4, 5, 17, 29]


def test_a_sample_that_a_step_shows_twice_moves_towards_the_mean():
    """Of its embeddings, in whichever micro-batches they are."""
    batches = inputs([4, 17, 4]), inputs([4, 3], seed=2)
    crd = module()
    before = crd.banks.clone()
    for batch in batches:
        crd(batch)
    crd.end_step()
    embedded = torch.cat([crd.student_embedding(one.student_features["classifier_input"]) for one in batches])
    mean = torch.stack([unit(embedded[row]) for row in (0, 2, 3)]).mean(dim=0)
    torch.testing.assert_close(crd.banks[0, 4], unit(0.5 * before[0, 4] + 0.5 * mean).detach())


def test_rows_of_equal_samples_are_meaned_and_others_kept():
    ids, rows = torch.tensor([7, 2, 7, 5, 7]), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    found = means_of_equal(ids, rows)
    assert torch.equal(found[[1, 3]], rows[[1, 3]])
    for row in (0, 2, 4):
        torch.testing.assert_close(found[row], rows[[0, 2, 4]].mean(dim=0))
    assert torch.equal(found[0], found[2])


def test_a_step_that_is_left_out_leaves_nothing_behind():
    """Its samples do not reach the bank, and the constants are looked at again where they are put back."""
    crd, fresh = module(), module()
    crd(inputs([1, 2, 3]))
    crd.constants.zero_()
    crd.drop_step()
    batch = inputs([4, 17, 29])
    assert torch.equal(crd(batch), fresh(batch))
    for one in (crd, fresh):
        one.end_step()
    assert torch.equal(crd.banks, fresh.banks)


def others_of(sample):
    return torch.ne(LABELS, LABELS[sample]).nonzero().flatten()


@pytest.mark.parametrize("count", [8, 4000])
def test_negatives_are_of_other_classes_and_uniform_among_them(count):
    """4000 are more than there are: those are drawn with replacement, as by the authors' code."""
    crd = module(num_negatives=count)
    drawn = torch.cat([crd.draw_negatives(inputs([4, 17, 29], epoch=epoch)) for epoch in range(4000 // count)], dim=1)
    for row, sample in enumerate([4, 17, 29]):
        others, counts = others_of(sample), torch.bincount(drawn[row], minlength=N)
        assert counts.nonzero().flatten().tolist() == others.tolist()
        expected = drawn.shape[1] / len(others)
        assert ((counts[others] - expected) ** 2 / expected).sum() < 50  # chi-square, at most 21 degrees of freedom


def test_negatives_are_different_ones():
    """All that there are outside the largest class: of that class's samples, all the others, each once."""
    drawn = module(num_negatives=18).draw_negatives(inputs([4, 17, 29]))
    assert all(len(row.unique()) == 18 for row in drawn)
    assert drawn[1].sort().values.tolist() == others_of(17).tolist()
    everyone = module(num_negatives=N, negatives="all").draw_negatives(inputs([4]))
    assert everyone.sort().values.tolist() == [list(range(N))]


def test_negatives_may_come_from_all_samples():
    crd = module(num_negatives=2000, negatives="all")
    assert crd.draw_negatives(inputs([4])).unique().tolist() == list(range(N))


def test_draws_and_state_resume_where_they_were():
    crd = module()
    crd(inputs([1, 2, 3]))
    crd.end_step()
    resumed = module(seed=5)
    resumed.load_state_dict(crd.state_dict())
    resumed.config, resumed.source = crd.config, crd.source
    batch = inputs([3, 20, 8], seed=2, epoch=1.0)
    assert torch.equal(resumed(batch), crd(batch))
    for one in (resumed, crd):
        one.end_step()
    assert torch.equal(resumed.banks, crd.banks)
    assert torch.equal(resumed.constants, crd.constants)


def test_constants_are_estimated_once():
    crd = module()
    crd(inputs([1, 2, 3]))
    first = crd.constants.clone()
    crd(inputs([4, 5, 6], seed=9))
    assert (first > 0).all()
    assert torch.equal(crd.constants, first)


def test_negatives_change_with_the_epoch():
    crd = module()
    first, second = (crd.draw_negatives(inputs([4], epoch=epoch)) for epoch in (0.0, 1.0))
    assert not torch.equal(first, second)


def test_unknown_or_single_classes_and_maps_are_refused():
    term = parse_term({"term": "crd", "weight": 1})
    with pytest.raises(Refused, match="negatives: all"):
        term.build(context(sample_labels=None))
    with pytest.raises(Refused, match="29 sample labels for 30"):
        term.build(context(sample_labels=LABELS[1:]))
    with pytest.raises(Refused, match="one class only"):
        term.build(context(sample_labels=torch.zeros(N, dtype=torch.int64)))
    maps = {"classifier_input": torch.Size([6, 4, 4])}
    with pytest.raises(Refused, match="take classifier_input"):
        term.build(TermContext(maps, maps, K, N, sample_labels=LABELS))


def test_others_steps_over_a_class_at_either_end():
    index = module().class_index
    draws = Draws(inputs([0, 5, 15]), seed=0)
    drawn = index.others(torch.tensor([0, 5, 15]), draws, 200)
    assert (LABELS[drawn] != LABELS[torch.tensor([0, 5, 15])][:, None]).all()

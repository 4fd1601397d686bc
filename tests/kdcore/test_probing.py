"""Nearest neighbours, linear probes and shared neighbours, against formulas of their own."""

import torch

from kdcore.probing import knn_logits, linear_probe_logits, neighbour_agreement, top1

GENERATOR = torch.Generator().manual_seed(0)
LABELS = torch.arange(60) % 3
CENTRES = 4 * torch.randn(3, 8, generator=GENERATOR)
BANK = CENTRES[LABELS] + torch.randn(60, 8, generator=GENERATOR)
QUERIES = CENTRES[LABELS] + torch.randn(60, 8, generator=GENERATOR)


def test_neighbours_vote_by_similarity():
    """By hand for one query."""
    found = knn_logits(BANK, LABELS, QUERIES[:1], 3, neighbours=5)
    similarity = torch.cosine_similarity(BANK.double(), QUERIES[:1].double())
    votes = [0.0, 0.0, 0.0]
    for index in similarity.argsort(descending=True)[:5].tolist():
        votes[int(LABELS[index])] += float((similarity[index] / 0.07).exp())
    torch.testing.assert_close(found[0], torch.tensor(votes, dtype=torch.float64))
    assert top1(knn_logits(BANK, LABELS, QUERIES, 3), LABELS) > 0.95


def test_more_neighbours_than_there_are():
    assert knn_logits(BANK[:3], LABELS[:3], QUERIES, 3).shape == (60, 3)


def test_a_probe_is_at_its_minimum():
    """The gradient of the objective is 0 where it ends; classes that can be told apart are."""
    weight_decay, inputs = 1e-2, (BANK.double() - BANK.double().mean(0)) / BANK.double().std(0)
    logits = linear_probe_logits(BANK, LABELS, BANK, 3, weight_decay)
    residual = (logits.softmax(1) - torch.eye(3, dtype=torch.float64)[LABELS]) / 60
    assert residual.sum(0).abs().max() < 1e-4  # of the biases
    weights = torch.linalg.lstsq(torch.cat([inputs, torch.ones(60, 1, dtype=torch.float64)], 1), logits).solution[:-1]
    assert (residual.T @ inputs + weight_decay * weights.T).abs().max() < 1e-3
    assert top1(linear_probe_logits(BANK, LABELS, QUERIES, 3), LABELS) > 0.95


def test_no_trace_is_left():
    """The same probe twice gives the same bits, and gradients elsewhere are off as before."""
    with torch.no_grad():
        first = linear_probe_logits(BANK, LABELS, QUERIES, 3)
        assert torch.equal(first, linear_probe_logits(BANK, LABELS, QUERIES, 3))
        assert not first.requires_grad


def test_shared_neighbours():
    assert neighbour_agreement(BANK, 3 * BANK) == 1.0
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=GENERATOR)).Q
    assert neighbour_agreement(BANK, BANK @ rotation) == 1.0
    unrelated = neighbour_agreement(torch.randn(400, 16, generator=GENERATOR), torch.randn(400, 9, generator=GENERATOR))
    assert abs(unrelated - 20 / 399) < 0.02
    assert neighbour_agreement(BANK[:3], BANK[:3], neighbours=20) == 1.0

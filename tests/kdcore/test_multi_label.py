"""Metrics of images with several labels, against scikit-learn and plain loops, over batches and over ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from kdcore.errors import Refused
from kdcore.evaluation import report
from kdcore.multi_label import MultiLabelCounts, MultiLabelEvaluation, average_precision


def data(num_images: int = 97, num_classes: int = 7, seed: int = 0):
    """Logits in steps of 0.5, so that many are equal; labels of which the last class has none."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(num_images, num_classes, generator=generator) < 0.2).float()
    labels[:, -1] = 0
    logits = (4 * labels + 4 * torch.randn(num_images, num_classes, generator=generator)).round() / 2
    return logits, labels, logits + torch.randn(num_images, num_classes, generator=generator)


def restated(logits, labels, teacher):
    q, p = (1 / (1 + np.exp(-x.double().numpy())) for x in (logits, teacher))
    y = labels.double().numpy()
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    named = q >= 0.5
    return {
        "images": len(y),
        "mAP": average_precision_score(y[:, :-1], q[:, :-1], average="macro"),
        "f1": f1_score(y, named, average="micro"),
        "nll": float(-(y * np.log(q) + (1 - y) * np.log(1 - q)).sum(axis=1).mean()),
        "agreement": float((named == (p >= 0.5)).all(axis=1).mean()),
        "kl": float(kl.sum(axis=1).mean()),
    }


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_scikit_learns(seed):
    logits, labels, _ = data(seed=seed)
    for scores, positives in zip(logits.T[:-1], labels.T[:-1] > 0, strict=True):
        theirs = average_precision_score(positives.numpy(), scores.numpy())
        assert average_precision(scores, positives) == pytest.approx(theirs, rel=1e-9)
    tied, first = torch.zeros(8), torch.arange(8) == 3
    assert average_precision(tied, first) == 1 / 8, "equal scores are one threshold"
    assert average_precision(torch.arange(8.0), torch.arange(8) > 4) == 1.0


def test_scores_that_are_nan_are_wrong():
    """They were sorted before all others, each a threshold of its own: right where an image of the class came first."""
    shows = torch.tensor([True, False, False, False])
    nan = torch.full((4,), math.nan)
    assert average_precision(nan, shows) == 1 / 4
    assert average_precision(torch.tensor([2.0, 1.0, math.nan, 0.0]), shows) == 1 / 2
    counts, logits = MultiLabelCounts(2), torch.zeros(3, 2)
    logits[0, 1] = math.nan
    counts.add(logits, torch.zeros(3, 2), logits.clone())
    assert counts.result()["agreement"] == pytest.approx(2 / 3)


def test_metrics_equal_a_plain_restatement():
    logits, labels, teacher = data()
    counts = MultiLabelCounts(7)
    for start, end in ((0, 7), (7, 64), (64, 97)):
        counts.add(logits[start:end], labels[start:end], teacher[start:end])
    assert counts.result() == pytest.approx(restated(logits, labels, teacher), rel=1e-5)
    assert counts.average_precisions()[-1] is None, "no image shows the last class, which is left out of the mean"


def giving(sums):
    """A sum over ranks that is known: each call gives the next."""
    left = iter(sums)
    return lambda one: one.copy_(next(left))


def test_ranks_give_one_result():
    """Three ranks, of which the last has no image; each adds up what all of them gave."""
    logits, labels, teacher = data(23)
    shares = (range(20), range(20, 23), range(23, 23))
    ranks = []
    for share in shares:
        ranks.append(MultiLabelCounts(7))
        ranks[-1].has_teacher = True
        if len(share):
            rows = slice(share.start, share.stop)
            ranks[-1].add(logits[rows], labels[rows], teacher[rows])
    given: list[list[torch.Tensor]] = []
    for rank, share in zip(ranks, shares, strict=True):
        given.append([])
        rank.over_ranks(share, 23, lambda one: given[-1].append(one.clone()) or one)
    sums = [torch.stack(parts).sum(dim=0) for parts in zip(*given, strict=True)]
    for rank, share in zip(ranks, shares, strict=True):
        found = rank.over_ranks(share, 23, giving(sums))
        assert found.result() == pytest.approx(restated(logits, labels, teacher), rel=1e-5)


def test_an_evaluation_takes_lists_of_classes():
    logits, labels, teacher = data()
    answers = torch.full((97, 6), -1)
    for row, shown in enumerate(labels):
        numbers = shown.nonzero()[:, 0]
        answers[row, : len(numbers)] = numbers
    whole, parts = MultiLabelEvaluation(7), [MultiLabelEvaluation(7), MultiLabelEvaluation(7)]
    whole.add(logits, answers, teacher)
    parts[0].add(logits[:40], answers[:40], teacher[:40])
    parts[1].add(logits[40:], answers[40:], teacher[40:])
    parts[0].merge(parts[1])
    assert whole.metrics() == parts[0].metrics() == pytest.approx(restated(logits, labels, teacher), rel=1e-5)
    found = report(whole, None, list("abcdefg"))
    assert [found[name] for name in ("reliability", "confusions", "confusion_matrix")] == [{}, {}, {}]
    first, last = found["classes"][0]["student"], found["classes"][-1]["student"]
    named, shown = logits[:, 0] >= 0, labels[:, 0] > 0
    assert first["images"] == int(shown.sum())
    assert first["recall"] == pytest.approx(float((named & shown).sum() / shown.sum()))
    assert first["precision"] == pytest.approx(float((named & shown).sum() / named.sum()))
    assert (last["images"], last["average_precision"], last["recall"]) == (0, None, None)


def test_no_image_and_no_label():
    with pytest.raises(Refused, match="no image was counted"):
        MultiLabelCounts(3).result()
    counts = MultiLabelCounts(2)
    counts.add(torch.zeros(4, 2), torch.zeros(4, 2))
    assert counts.result() == {"images": 4, "f1": 0.0, "nll": pytest.approx(2 * math.log(2))}

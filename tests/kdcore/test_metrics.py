"""Counts against plain loops, over batches and over ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from kdcore.evaluation import Evaluation
from kdcore.metrics import FIELDS, Counts


def data(num_images: int, num_classes: int):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(num_images, num_classes, generator=generator)
    teacher_logits = logits + torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.randint(num_classes, (num_images,), generator=generator), teacher_logits


def restated(logits, labels, teacher_logits):
    """The metrics image by image, in plain float64."""
    rows = []
    for z, label, v in zip(logits.double().numpy(), labels.tolist(), teacher_logits.double().numpy(), strict=True):
        q, p = np.exp(z) / np.exp(z).sum(), np.exp(v) / np.exp(v).sum()
        rank = int((z > z[label]).sum())
        kl = sum(p_k * math.log(p_k / q_k) for p_k, q_k in zip(p, q, strict=True))
        rows.append((rank < 1, rank < 5, -math.log(q[label]), z.argmax() == v.argmax(), kl))
    recalls = [np.mean([row[0] for row, one in zip(rows, labels, strict=True) if one == k]) for k in labels.unique()]
    return dict(zip(FIELDS[1:], np.mean(rows, axis=0), strict=True)) | {"class_mean_top1": np.mean(recalls)}


@pytest.mark.parametrize("num_classes", [2, 4, 5, 30])
def test_metrics_equal_a_plain_restatement(num_classes):
    logits, labels, teacher_logits = data(101, num_classes)
    counts = Counts(num_classes)
    for start in (0, 7, 64):
        end = {0: 7, 7: 64, 64: 101}[start]
        counts.add(logits[start:end], labels[start:end], teacher_logits[start:end])
    result = counts.result()
    assert result.pop("images") == 101
    assert result == pytest.approx(restated(logits, labels, teacher_logits), rel=1e-5)
    assert (result["top5"] == 1.0) == (num_classes <= 5)


def test_ranks_merge_by_adding_totals():
    logits, labels, teacher_logits = data(23, 7)
    whole, ranks = Counts(7), [Counts(7) for _ in range(3)]  # the last rank has no image
    whole.add(logits, labels, teacher_logits)
    ranks[0].add(logits[:20], labels[:20], teacher_logits[:20])
    ranks[1].add(logits[20:], labels[20:], teacher_logits[20:])
    reduced = torch.stack([rank.totals for rank in ranks]).sum(dim=0)
    for rank in ranks:
        rank.has_teacher, rank.totals = True, reduced
        assert rank.result() == pytest.approx(whole.result(), rel=1e-6)


def test_an_empty_batch_counts_nothing():
    logits, labels, teacher_logits = data(6, 4)
    counts = Counts(4)
    counts.add(logits, labels, teacher_logits)
    before = counts.totals.clone()
    counts.add(logits[:0], labels[:0], teacher_logits[:0])
    assert torch.equal(counts.totals, before)


def test_a_literal_example():
    counts = Counts(2)
    counts.add(torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.tensor([0, 1]), torch.zeros(2, 2))
    result = counts.result()
    assert result["nll"] == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert result["kl"] == pytest.approx((0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)) / 2)


def test_without_a_teacher_nothing_is_said_of_one():
    logits, labels, _ = data(5, 4)
    counts = Counts(4)
    counts.add(logits, labels)
    assert counts.result().keys() == {"images", "top1", "top5", "nll", "class_mean_top1"}


def test_each_class_counts_alike():
    """Nine images of one class, one of another, none of a third: all said to be of the first."""
    counts = Counts(3)
    counts.add(torch.tensor([[1.0, 0.0, 0.0]]).expand(10, 3), torch.tensor([0] * 9 + [1]))
    assert (counts.result()["top1"], counts.result()["class_mean_top1"]) == (0.9, 0.5)
    assert counts.by_class.tolist() == [[9, 1, 0], [9, 0, 0]]


def test_a_network_agrees_with_itself_where_its_logits_tie():
    tied = torch.zeros(4, 50, dtype=torch.bfloat16)
    tied[:, 20:40] = 1.0
    counts = Counts(50)
    counts.add(tied, torch.arange(4), tied.clone())
    assert counts.result()["agreement"] == 1.0
    assert counts.result()["kl"] == 0.0


def test_answers_that_are_not_finite_are_wrong_and_agree_with_none():
    """NaN was ranked before all others: two networks of NaNs agreed, and were right about the first class."""
    logits = torch.tensor([[1.0, 0.0, 0.0]]).repeat(5, 1)
    logits[1:, 0] = torch.tensor([math.nan, math.inf, -math.inf, -math.inf])
    logits[1, 1] = logits[3, 1:] = -math.inf  # the fourth has no class at all, the fifth two
    evaluation = Evaluation(3)
    evaluation.add(logits, torch.tensor([0, 0, 0, 0, 1])[:, None], logits.clone())
    result = evaluation.metrics()
    assert [result[name] for name in ("top1", "top5", "agreement", "agreement_top5")] == [0.4] * 4
    assert math.isnan(result["nll"])
    assert result["ece"] < 1
    assert evaluation.confusion_matrix().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_counts_stay_exact_where_float32_would_not():
    counts = Counts(2)
    counts.totals[0] = counts.totals[1] = 2**24
    counts.add(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    assert counts.result()["images"] == 2**24 + 1
    assert counts.result()["top1"] == 1.0


def test_low_precision_logits_are_measured_in_float32():
    logits, labels, teacher_logits = data(40, 6)
    low, full = Counts(6), Counts(6)
    low.add(logits.bfloat16(), labels, teacher_logits.bfloat16())
    full.add(logits.bfloat16().float(), labels, teacher_logits.bfloat16().float())
    assert torch.equal(low.totals, full.totals)


def test_no_image_is_an_error():
    with pytest.raises(Refused, match="no image was counted"):
        Counts(2).result()

"""Sums over images: literal values, merging, several right answers, and CKA against its definition."""

import math

import numpy as np
import pytest
import torch

from kdcore.evaluation import Evaluation, LinearCKA, binned, expected_calibration_error, most_confused, report


def evaluated(logits, answers, teacher=None) -> Evaluation:
    one = Evaluation(logits.shape[1])
    one.add(logits, answers, teacher)
    return one


def probabilities(rows: list[list[float]]) -> torch.Tensor:
    """Logits whose softmax is these rows."""
    return torch.tensor(rows).log()


def test_expected_calibration_error_of_known_bins():
    """Two images at 0.9, one right: |0.5 - 0.9|; two at 0.3, both right: |1 - 0.3|; each bin weighs a half."""
    bins = binned(torch.tensor([0.9, 0.9, 0.3, 0.3]), torch.tensor([True, False, True, True]))
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.4 + 0.5 * 0.7)


def test_a_bin_ends_with_its_upper_border():
    """3/15 belongs to the third bin, a little more to the fourth; 0 and 1 to the first and the last."""
    bins = binned(torch.tensor([0.2, 0.2001, 0.0, 1.0]), torch.tensor([True] * 4))
    assert bins[0].nonzero().flatten().tolist() == [0, 2, 3, 14]


def test_metrics_by_hand():
    logits = probabilities([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3]])
    one = evaluated(
        logits, torch.tensor([[0], [1], [2]]), probabilities([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.7, 0.2]])
    )
    metrics = one.metrics()
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert metrics["agreement"] == pytest.approx(2 / 3)
    assert metrics["nll"] == pytest.approx(-np.log([0.7, 0.6, 0.3]).mean())
    assert metrics["ece"] == pytest.approx((0.3 + 0.4 + 0.5) / 3)
    assert [row["accuracy"] for row in one.per_class()] == [1.0, 1.0, 0.0]
    assert one.confusions(5) == [(2, 1, 1)]


def test_overlap_of_the_five_most_probable():
    """Of ten classes the student's five are 0-4, the teacher's 3-7: two in common."""
    student, teacher = torch.zeros(1, 10), torch.zeros(1, 10)
    student[0, :5] = torch.arange(5, 0, -1)
    teacher[0, 3:8] = torch.arange(5, 0, -1)
    assert evaluated(student, torch.tensor([[0]]), teacher).metrics()["agreement_top5"] == pytest.approx(0.4)


def test_of_several_right_answers_the_most_probable_counts():
    """Right are {1, 2}: predicting 2 is right; predicting 0 is an error of class 1, the more probable of the two."""
    logits = probabilities([[0.1, 0.3, 0.6], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    one = evaluated(logits, torch.tensor([[1, 2], [1, 2], [-1, -1]]))
    assert one.metrics()["images"] == 2
    assert one.metrics()["top1"] == 0.5
    assert one.confusions(5) == [(1, 0, 1)]
    assert [row["images"] for row in one.per_class()] == [0, 1, 1]
    assert one.per_class()[0]["accuracy"] is None


def test_parts_merge_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(50, 7, generator=generator) for _ in range(2))
    answers = torch.randint(7, (50, 1), generator=generator)
    whole = evaluated(logits, answers, teacher)
    first, second = (
        evaluated(logits[:20], answers[:20], teacher[:20]),
        evaluated(logits[20:], answers[20:], teacher[20:]),
    )
    first.merge(second)
    assert first.metrics() == pytest.approx(whole.metrics())
    assert first.confusions(100) == whole.confusions(100)
    assert first.reliability() == whole.reliability()


def test_the_confusion_matrix_counts_every_image():
    """Against a plain count; of many classes, those with most mistakes are shown, in their own order."""
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    one = evaluated(logits, labels[:, None])
    expected = np.zeros((9, 9), int)
    for label, prediction in zip(labels.tolist(), logits.argmax(dim=1).tolist(), strict=True):
        expected[label, prediction] += 1
    assert one.confusion_matrix().tolist() == expected.tolist()
    for number, row in enumerate(one.per_class()):
        assert row["accuracy"] == pytest.approx(expected[number, number] / expected[number].sum())
        assert row["precision"] == pytest.approx(expected[number, number] / expected[:, number].sum())
    shown = most_confused(one, [f"class{n}" for n in range(9)], 4)
    mistakes = expected.sum(0) + expected.sum(1) - 2 * expected.diagonal()
    chosen = sorted(np.argsort(-mistakes, kind="stable")[:4])
    assert shown["classes"] == [f"class{n}" for n in chosen]
    assert shown["counts"] == expected[np.ix_(chosen, chosen)].tolist()


def test_the_report_names_classes():
    one = evaluated(probabilities([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[0], [1]]))
    found = report(one, None, ["cat", "dog"])
    assert found["classes"][1] == {
        "class": "dog",
        "student": {"images": 1, "accuracy": 0.0, "precision": None},
    }
    assert found["classes"][0]["student"] == {"images": 1, "accuracy": 1.0, "precision": 0.5}
    assert found["confusion_matrix"]["student"] == {"classes": ["cat", "dog"], "counts": [[1, 0], [1, 0]]}
    assert found["confusions"]["student"] == [{"label": "dog", "prediction": "cat", "images": 1}]


def centred_gram(features: np.ndarray) -> np.ndarray:
    n = len(features)
    centring = np.eye(n) - 1 / n
    return centring @ features @ features.T @ centring


def test_cka_against_its_definition_by_grams():
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) of the images' centred Gram matrices, over uneven batches."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(40, 5, generator=generator) + 3, torch.randn(40, 8, generator=generator)
    teacher[:, :5] += student
    cka = LinearCKA()
    for rows in (slice(0, 7), slice(7, 30), slice(30, 40)):
        cka.add({"student": student[rows], "teacher": teacher[rows]})
    one, other = (centred_gram(x.double().numpy()) for x in (student, teacher))
    expected = (one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum())
    assert cka.result()["student", "teacher"] == pytest.approx(expected, rel=1e-9)
    assert cka.result()["student", "student"] == pytest.approx(1)


def test_cka_is_blind_to_rotation_and_scale():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(30, 6, generator=generator)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    cka = LinearCKA()
    cka.add({"one": features, "other": 7 * features @ rotation})
    assert cka.result()["one", "other"] == pytest.approx(1, abs=1e-6)


def test_cka_of_workers_merges_and_maps_are_averaged():
    generator = torch.Generator().manual_seed(3)
    maps, tokens = torch.randn(20, 4, 3, 3, generator=generator), torch.randn(20, 9, 5, generator=generator)
    whole, first, second, idle = (LinearCKA() for _ in range(4))
    whole.add({"map": maps.mean(dim=(2, 3)), "tokens": tokens.mean(dim=1)})
    first.add({"map": maps[:5], "tokens": tokens[:5]})
    second.add({"map": maps[5:], "tokens": tokens[5:]})
    for other in (second, idle):  # a worker without images
        first.merge(other)
    assert first.images == 20
    assert first.result()["map", "tokens"] == pytest.approx(whole.result()["map", "tokens"], rel=1e-5)


@pytest.mark.parametrize("level", [0.1, 1 / 3, 1.0, 1e4])
def test_a_constant_tap_has_no_cka(level):
    """Whether it was NaN hung on whether the cancellation was exact."""
    cka, generator = LinearCKA(), torch.Generator().manual_seed(0)
    for _ in range(7):
        varying = torch.randn(13, 5, generator=generator)
        cka.add({"constant": torch.full((13, 6), level), "varying": varying, "hardly": 1 + 1e-4 * varying})
    found = cka.result()
    assert math.isnan(found["constant", "varying"])
    assert math.isnan(found["constant", "constant"])
    assert found["hardly", "varying"] == pytest.approx(1, abs=1e-3)

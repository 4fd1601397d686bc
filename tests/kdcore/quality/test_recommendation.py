"""Which images layers are scored on, and which pairs of taps their scores recommend."""

import numpy as np
import pytest

from kdcore.errors import Refused
from kdcore.quality.collect import class_balanced_sample, recommend_pairs
from kdcore.quality.score import Quality


def test_a_class_balanced_sample_is_balanced_and_a_function_of_its_arguments():
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    ids = class_balanced_sample(labels, 7, seed=5)
    assert np.bincount(labels[ids]).tolist() == [7] * 10
    assert (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(ids, class_balanced_sample(labels.astype(np.int32), 7, seed=5))
    assert not np.array_equal(ids, class_balanced_sample(labels, 7, seed=6))
    assert set(ids) < set(class_balanced_sample(labels, 8, seed=5))  # a larger sample holds the smaller one
    assert class_balanced_sample(np.zeros(10, np.int64), 3, seed=0).tolist() == [0, 2, 9]  # the same on every machine


def test_every_image_has_the_same_chance():
    picked = np.concatenate([class_balanced_sample(np.repeat([0, 1], 10), 5, seed) for seed in range(400)])
    counts = np.bincount(picked, minlength=20)
    assert ((counts - 200) ** 2 / 200).sum() < 36.2  # chi-square with 19 degrees of freedom, 1 %; the true one is less


def test_too_small_classes_are_refused():
    with pytest.raises(Refused, match="class 1 has 2 images, fewer than per_class=3"):
        class_balanced_sample(np.array([0, 0, 0, 1, 1]), 3, seed=0)
    with pytest.raises(Refused, match="class 1 has 0 images"):
        class_balanced_sample(np.array([0, 2]), 1, seed=0)
    with pytest.raises(Refused, match="per_class is 0"):
        class_balanced_sample(np.array([0, 1]), 0, seed=0)


def scores(**q: float) -> dict[str, Quality]:
    return {tap: Quality(value, 0.0, 0.0, samples=6, dims=4, effective_dims=2.0) for tap, value in q.items()}


def taps_of(pairs) -> list[tuple[str, str]]:
    return [(pair.student, pair.teacher) for pair in pairs]


def test_the_best_teacher_taps_meet_the_student_taps_in_depth_order():
    quality = scores(a=0.1, b=0.9, c=0.2, d=0.7, e=0.8, f=0.3)
    assert taps_of(recommend_pairs(["s1", "s2", "s3"], quality, 3)) == [("s1", "b"), ("s2", "d"), ("s3", "e")]
    assert taps_of(recommend_pairs(["s1"], quality, 1)) == [("s1", "b")]


def test_of_equal_scores_the_deeper_tap_wins():
    assert taps_of(recommend_pairs(["s1", "s2"], scores(a=0.5, b=0.5, c=0.5), 2)) == [("s1", "b"), ("s2", "c")]


def test_more_student_taps_than_pairs_are_spread_over_the_depth():
    quality = scores(a=1, b=2, c=3, d=4)
    students = [pair.student for pair in recommend_pairs([str(i) for i in range(8)], quality, 4)]
    assert students == ["1", "3", "5", "7"]
    assert [pair.student for pair in recommend_pairs(["x", "y", "z"], quality, 2)] == ["x", "z"]


def test_too_few_taps_are_refused():
    with pytest.raises(Refused, match="3 pairs cannot be made from 2 student taps; ask for 1 to 2"):
        recommend_pairs(["s1", "s2"], scores(a=1, b=2, c=3), 3)
    with pytest.raises(Refused, match="3 pairs cannot be made from 2 teacher taps"):
        recommend_pairs(["s1", "s2", "s3"], scores(a=1, b=2), 3)
    with pytest.raises(Refused, match="0 pairs cannot be made"):
        recommend_pairs(["s1"], scores(a=1), 0)

import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from kdcore.errors import Refused
from kdcore.quality.collect import LayerQuality, kept_bytes
from kdcore.quality.score import Quality, layer_quality

TOY = torch.tensor([[3, 1, 0, 0], [3, 0, 1, 0], [4, 0, 0, 1], [0, 3, 1, 1], [1, 3, 0, 0], [0, 4, 0, 1]]).float()
NUM_CLASSES = 6


def restatement(rows: np.ndarray, labels: np.ndarray, num_train: int, log_ed: bool) -> dict[str, float]:
    """The definition, pair by pair and with singular values."""
    classes = sorted(set(labels.tolist()))
    of = {c: [x for x, label in zip(rows.astype(np.float64), labels, strict=True) if label == c] for c in classes}

    def cos(x: np.ndarray, y: np.ndarray) -> float:
        return abs(float(x @ y)) / (np.linalg.norm(x) * np.linalg.norm(y))

    within = {c: [cos(x, y) for x, y in itertools.combinations(of[c], 2)] for c in classes}
    between = [np.mean([cos(x, y) for x in of[a] for y in of[b]]) for a, b in itertools.permutations(classes, 2)]
    separation = np.mean([np.mean(within[c]) for c in classes]) - np.mean(between)

    entropies, dims = [], []
    for c in classes:
        singular = np.linalg.svd(np.array(of[c]) - np.mean(of[c], axis=0), compute_uv=False)
        shares = [v for v in singular**2 / (singular**2).sum() if v > 1e-14]
        entropies.append(-sum(v * math.log(v) for v in shares))
        kept = 0
        while sum(shares[:kept]) < 0.95:
            kept += 1
        dims.append(kept)
    scale = math.log(np.mean(dims)) if log_ed else math.log(5)
    information = (1 - np.mean([min(within[c]) for c in classes])) * np.mean(entropies) / scale

    nearest = [
        min(np.linalg.norm(x - y) for x in of[c] for other in classes if other != c for y in of[other]) for c in classes
    ]
    norm = np.mean([np.mean([np.linalg.norm(x) for x in of[c]]) for c in classes])
    exponent = 1 / min(rows.shape)
    efficiency = 2 * np.mean(nearest) / norm * (num_train / math.pi) ** exponent
    q = separation + math.sqrt(information * efficiency)
    return {"separation": separation, "information": information, "efficiency": efficiency, "q": q}


@pytest.fixture(scope="module")
def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """300 images of 6 classes with 40 features: rectified noise around class means; ids are scattered."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(300) % NUM_CLASSES
    means = 2 * torch.rand(NUM_CLASSES, 40, generator=generator)
    features = (means[labels] + torch.randn(300, 40, generator=generator)).relu()
    return features, labels, torch.randperm(10_000, generator=generator)[:300]


def measured(sample, rows, batch_size: int = 64, **settings) -> LayerQuality:
    features, labels, ids = sample
    quality = LayerQuality(NUM_CLASSES, **settings)
    for part in torch.tensor(list(rows), dtype=torch.int64).split(batch_size):
        taps = {"late": features[part], "early": features[part].flip(1).exp().unflatten(1, (10, 2, 2))}
        quality.add(taps, labels[part], ids[part])
    return quality


def score_of(rows: torch.Tensor, counts: list[int], **settings) -> Quality:
    return layer_quality(rows, counts, num_train=len(rows), **settings)


def test_the_published_definition_on_a_toy():
    score = score_of(TOY, [3, 3])
    assert score.separation == pytest.approx(0.68642876, abs=5e-9)
    assert score.information == pytest.approx(0.04971343, abs=5e-9)
    assert score.efficiency == pytest.approx(1.89553284, abs=5e-9)
    assert score.q == pytest.approx(0.99340340, abs=5e-9)
    assert (score.samples, score.dims, score.effective_dims) == (6, 4, 2.0)


def test_the_official_separation_on_a_toy():
    """The class's whole block, every image's cosine of 1 with itself included."""
    official, ours = (score_of(TOY, [3, 3], separation=which) for which in ("official", "pairs"))
    assert official.separation == pytest.approx(0.71588185, abs=5e-9)
    assert official.q == pytest.approx(1.02285649, abs=5e-9)
    within = (0.91357199 + 0.90970949) / 2
    assert official.separation - ours.separation == pytest.approx((1 - within) / 3, abs=1e-8)
    assert (official.information, official.efficiency) == (ours.information, ours.efficiency)


def test_the_other_information_scale_on_a_toy():
    score = score_of(TOY, [3, 3], information_scale="log_ed")
    assert score.information == pytest.approx(0.11543100, abs=5e-9)
    assert score.q == pytest.approx(1.15419286, abs=5e-9)


@pytest.mark.parametrize("information_scale", ["log5", "log_ed"])
@pytest.mark.parametrize("wide", [False, True], ids=["more images than dims", "more dims than images"])
def test_agrees_with_a_slow_restatement(sample, information_scale, wide):
    features, labels, ids = sample
    if wide:
        features = torch.cat([features, features.square(), features.sqrt()], dim=1)[:90].repeat(1, 3)
        labels, ids = labels[:90], ids[:90]
    quality = LayerQuality(NUM_CLASSES, information_scale=information_scale)
    quality.add({"tap": features}, labels, ids)
    score = quality.result(num_train=50_000)["tap"]
    expected = restatement(features.numpy(), labels.numpy(), 50_000, information_scale == "log_ed")
    for name, value in expected.items():
        assert getattr(score, name) == pytest.approx(value, rel=1e-9), name


def test_blocks_of_columns_and_panels_of_rows_add_up(sample, monkeypatch):
    whole = measured(sample, range(300)).result(1000)
    monkeypatch.setattr("kdcore.quality.score.BLOCK_ELEMENTS", 300 * 7)
    monkeypatch.setattr("kdcore.quality.score.PANEL_ROWS", 37)
    for tap, score in measured(sample, range(300)).result(1000).items():
        assert score.q == pytest.approx(whole[tap].q, rel=1e-12)


def test_independent_of_batch_size_and_of_the_order_of_arrival(sample):
    expected = measured(sample, range(300)).result(1000)
    assert list(expected) == ["late", "early"]
    for batch_size in (1, 7, 300):
        assert measured(sample, range(300), batch_size).result(1000) == expected
    assert measured(sample, torch.randperm(300, generator=torch.Generator().manual_seed(1))).result(1000) == expected


def test_independent_of_the_number_of_workers(sample):
    expected = measured(sample, range(300)).result(1000)
    for shares in ([range(90), range(90, 300)], [range(1, 300, 2), range(0, 300, 2)], [range(0), range(300)]):
        first, *others = (pickle.loads(pickle.dumps(measured(sample, share))) for share in shares)
        for other in (*others, LayerQuality(NUM_CLASSES)):  # the last had no batch at all
            first.merge(other)
        assert first.result(1000) == expected


def test_half_precision_features_are_taken(sample):
    features, labels, ids = sample
    quality = LayerQuality(NUM_CLASSES)
    quality.add({"tap": features.to(torch.bfloat16)}, labels, ids)
    exact = LayerQuality(NUM_CLASSES)
    exact.add({"tap": features}, labels, ids)
    assert quality.result(1000)["tap"].q == pytest.approx(exact.result(1000)["tap"].q, rel=1e-2)


def test_later_changes_of_a_batch_do_not_reach_what_was_kept(sample):
    features, labels, ids = (tensor.clone() for tensor in sample)
    quality = LayerQuality(NUM_CLASSES)
    quality.add({"tap": features}, labels, ids)
    before = quality.result(1000)
    for reused in (features, labels, ids):
        reused.zero_()
    assert quality.result(1000) == before


@pytest.mark.parametrize("scale", [2.0**-20, 3.7, 1e6])
def test_all_three_parts_ignore_the_scale_of_the_features(scale):
    score, scaled = score_of(TOY, [3, 3]), score_of(TOY * scale, [3, 3])
    for name in ("separation", "information", "efficiency", "q"):
        assert getattr(scaled, name) == pytest.approx(getattr(score, name), rel=1e-6), name


def test_a_rotation_changes_nothing_but_a_shift_does():
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    assert score_of(TOY @ rotation, [3, 3]).q == pytest.approx(score_of(TOY, [3, 3]).q, rel=1e-5)
    shifted = score_of(TOY + 1, [3, 3])
    assert shifted.separation < 0.5 < score_of(TOY, [3, 3]).separation


def test_large_maps_are_max_pooled_first():
    maps = torch.rand(8, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    labels, ids = torch.arange(8) % 2, torch.arange(8)
    pooled = maps[:, :, :6, :6].unflatten(3, (2, 3)).unflatten(2, (2, 3)).amax(dim=(3, 5))  # [8,2,2,2]
    small, large = LayerQuality(2), LayerQuality(2, max_elements=16)  # p = ceil(sqrt(128 / 16)) = 3
    small.add({"tap": pooled}, labels, ids)
    large.add({"tap": maps}, labels, ids)
    assert large.result(8) == small.result(8)
    assert large.result(8)["tap"].dims == 8
    at_the_limit = LayerQuality(2, max_elements=128)
    at_the_limit.add({"tap": maps}, labels, ids)
    assert at_the_limit.result(8)["tap"].dims == 128


@pytest.mark.parametrize("shape", [(4, 20, 5), (4, 100), (4, 25, 2, 2)])
def test_what_cannot_be_pooled_below_the_limit_is_refused(shape):
    with pytest.raises(Refused, match=r"'tap' of shape .* 100 elements, above max_elements=10.*raise max_elements"):
        LayerQuality(2, max_elements=10).add({"tap": torch.ones(shape)}, torch.zeros(4).long(), torch.arange(4))


def test_kept_bytes_counts_what_is_kept(sample):
    quality = measured(sample, range(300), max_elements=40)
    kept = sum(rows.numel() * rows.element_size() for chunks in quality._features.values() for rows in chunks)
    assert kept_bytes({"late": (40,), "early": (10, 2, 2)}, 300, max_elements=40) == kept == 300 * 80 * 4
    assert kept_bytes({"map": (2, 8, 8)}, 10, max_elements=16) == 10 * 8 * 4


@pytest.mark.parametrize("information_scale", ["log5", "log_ed"])
def test_constant_features_have_quality_zero(information_scale):
    row = torch.rand(40, generator=torch.Generator().manual_seed(0))
    score = score_of(row.repeat(6, 1), [3, 3], information_scale=information_scale)
    assert score.separation == pytest.approx(0.0, abs=1e-12)
    assert (score.information, score.efficiency, score.effective_dims) == (0.0, 0.0, 0.0)


def test_classes_without_spread_still_separate():
    score = score_of(torch.tensor([[3.0, 0.0]] * 3 + [[0.0, 4.0]] * 3), [3, 3])
    assert score.separation == pytest.approx(1.0)
    assert score.information == 0.0
    assert score.efficiency == pytest.approx(2 * 5 / 3.5 * math.sqrt(6 / math.pi))


def test_the_cosine_with_a_zero_vector_counts_as_zero():
    score = score_of(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), [2, 2])
    assert score.separation == pytest.approx((0 + 1) / 2 - 0)  # class means 0 and 1, nothing shared between
    assert (score.information, score.effective_dims) == (0.0, 1.0)  # one direction a class: no entropy
    assert score.efficiency == pytest.approx(2 * 1 / ((1 + 2) / 2) * math.sqrt(4 / math.pi))


def test_one_effective_dimension_is_no_scale():
    rows = torch.tensor([[9.0, 0.1, 0], [-9, 0, 0.1], [5, 0, 0], [0, 9, 0.1], [0.1, -9, 0], [0, 5, 0]])
    assert score_of(rows, [3, 3]).information > 0
    with pytest.raises(Refused, match=r"effective dimension is 1,.*information_scale='log5'"):
        score_of(rows, [3, 3], information_scale="log_ed")


def add_toy(quality: LayerQuality, features=TOY, labels=(0, 0, 0, 1, 1, 1), ids=range(6)) -> LayerQuality:
    quality.add({"tap": features}, torch.tensor(labels), torch.tensor(list(ids)))
    return quality


def test_what_has_no_score_is_refused_with_the_tap():
    with pytest.raises(Refused, match="tap 'tap': its features are zero for every image"):
        add_toy(LayerQuality(2), torch.zeros(6, 4)).result(6)
    for value in (math.nan, math.inf):
        with pytest.raises(Refused, match="tap 'tap' gives features that are not finite"):
            add_toy(LayerQuality(2), TOY * value)
    with pytest.raises(Refused, match="tap 'tap' gives features that are not finite"):
        add_toy(LayerQuality(2), TOY.double() * 1e300)  # beyond float32


def test_samples_that_cannot_be_scored_are_refused():
    with pytest.raises(Refused, match="num_classes is 1"):
        LayerQuality(1)
    with pytest.raises(Refused, match="no image was measured"):
        LayerQuality(2).result(6)
    with pytest.raises(Refused, match="class 1 has 1 of the images measured; a class needs at least 2"):
        add_toy(LayerQuality(2), labels=(0, 0, 0, 0, 0, 1)).result(6)
    with pytest.raises(Refused, match="class 2 has 0 of the images"):
        add_toy(LayerQuality(3)).result(6)
    with pytest.raises(Refused, match="num_train is 5, fewer than the 6 images"):
        add_toy(LayerQuality(2)).result(5)
    with pytest.raises(Refused, match="sample 3 was added twice"):
        add_toy(LayerQuality(2), ids=(0, 1, 2, 3, 4, 3)).result(6)


def test_wrong_batches_are_refused():
    with pytest.raises(Refused, match="labels reach from 0 to 2, but num_classes=2"):
        add_toy(LayerQuality(2), labels=(0, 0, 0, 1, 1, 2)).result(6)
    with pytest.raises(Refused, match="mixed; measure views without mixup"):
        LayerQuality(2).add({"tap": TOY}, torch.full((6, 2), 0.5), torch.arange(6))
    quality = add_toy(LayerQuality(2))
    with pytest.raises(Refused, match=r"taps \['other'\] come after rows of \['tap'\]"):
        quality.add({"other": TOY}, torch.zeros(6).long(), torch.arange(6, 12))


def test_workers_with_other_settings_are_refused():
    for other in (LayerQuality(3), LayerQuality(2, max_elements=9), LayerQuality(2, information_scale="log_ed")):
        with pytest.raises(Refused, match="the workers measured differently"):
            LayerQuality(2).merge(other)
    merged = add_toy(LayerQuality(2))
    merged.merge(add_toy(LayerQuality(2)))  # the same images again
    with pytest.raises(Refused, match="sample 0 was added twice"):
        merged.result(12)

"""Layer quality: which of a teacher's layers have the most to teach, scored on a few thousand images.

One pass over a class-balanced sample of the training set (`class_balanced_sample`) scores any number of taps
(`LayerQuality`); `recommend_pairs` turns the scores into the pairs of a feature-only recipe.

Not here: the score itself (`kdcore.quality.score`), which taps to score (`kdcore.quality.blocks`), running the
teacher, and showing the scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.errors import Refused
from kdcore.quality.score import INFORMATION_SCALE, SEPARATION, InformationScale, Quality, Separation, layer_quality
from kdcore.terms.base import Pair

MAX_ELEMENTS = 262_144  # of one image's features; the source's limit


class LayerQuality:
    """Collects tapped features batch by batch, then scores every tap.

    Rows are put in the order (class, sample id) before anything is summed, and sums are float64: the result depends
    neither on the batches, nor on the order in which they came, nor on how many workers shared them (beyond what the
    network's own answers do). The object holds plain tensors in host memory and pickles: each rank fills its own for
    its share of the sample, one of them gathers the others' and takes them in with `merge`.

    Maps [C,H,W] of more than max_elements are max-pooled p x p, p = ceil(sqrt(elements / max_elements)), as in the
    source; larger tokens and vectors are refused.

    Memory: 4 bytes per element (`kept_bytes`; ResNet-34 at 224 pixels, 17 taps, 5,000 images: 32 GB, and 4 GB with
    max_elements=16384); while a tap is scored, its rows once more and about 32 n^2 bytes for n images. Time: n^2 D
    float64 flops for a tap of D elements, so that a GPU is worth naming to `result` for large maps.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        information_scale: InformationScale = INFORMATION_SCALE,
        separation: Separation = SEPARATION,
        max_elements: int = MAX_ELEMENTS,
    ) -> None:
        if num_classes < 2:
            raise Refused(f"num_classes is {num_classes}, but separation compares classes: it takes at least 2")
        self.num_classes = num_classes
        self.information_scale: InformationScale = information_scale
        self.separation: Separation = separation
        self.max_elements = max_elements
        self._labels: list[Tensor] = []
        self._sample_ids: list[Tensor] = []
        self._features: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def add(self, features: Mapping[str, Tensor], labels: Tensor, sample_ids: Tensor) -> None:
        """Take in one batch.

        features {tap: [B,C,H,W], [B,N,D] or [B,D]} of any float type, labels [B], sample_ids [B] int64. Refused for
        mixed labels, a label out of range, other taps than before, or features that are not finite.
        """
        if labels.ndim != 1 or labels.is_floating_point():
            raise Refused(f"labels of shape {list(labels.shape)} are mixed; measure views without mixup and CutMix")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise Refused(f"labels reach from {labels.min()} to {labels.max()}, but num_classes={self.num_classes}")
        self._refuse_other_taps(features)
        rows = {tap: _rows(tap, tensor, self.max_elements) for tap, tensor in features.items()}
        assert all(len(r) == len(labels) == len(sample_ids) for r in rows.values()), "a row for every label and id"
        for tap, row in rows.items():
            self._features.setdefault(tap, []).append(row)
        self._labels.append(labels.to(device="cpu", dtype=torch.int64, copy=True))
        self._sample_ids.append(sample_ids.to(device="cpu", dtype=torch.int64, copy=True))

    def merge(self, other: LayerQuality) -> None:
        """Take in the rows of another worker; its settings must be the same."""
        mine, theirs = self._settings(), other._settings()
        if mine != theirs:
            raise Refused(f"the workers measured differently, {mine} and {theirs}; give all the same settings")
        self._refuse_other_taps(other._features)
        self._labels += other._labels
        self._sample_ids += other._sample_ids
        for tap, rows in other._features.items():
            self._features.setdefault(tap, []).extend(rows)

    def result(self, num_train: int, device: torch.device | str = "cpu") -> dict[str, Quality]:
        """Return {tap: Quality}, in the order of the taps in `add`.

        num_train: images of the whole training set; device: where to compute (it must support float64). Refused for an
        image that was added twice, a class with fewer than two images, or a tap without a score.
        """
        order, counts = self._order()
        if num_train < len(order):
            raise Refused(f"num_train is {num_train}, fewer than the {len(order)} images measured")
        scores = {}
        for tap, chunks in self._features.items():
            try:
                rows = _in_order(chunks, order)
                options = self.information_scale, device, self.separation
                scores[tap] = layer_quality(rows, counts, num_train, *options)
            except Refused as error:
                raise Refused(f"tap {tap!r}: {error}") from error
        return scores

    def _settings(self) -> tuple[int, str, str, int]:
        return self.num_classes, self.information_scale, self.separation, self.max_elements

    def _refuse_other_taps(self, features: Mapping[str, object]) -> None:
        """Refuse taps other than those of the rows so far; a worker without rows has none."""
        if self._features and features and features.keys() != self._features.keys():
            raise Refused(f"taps {sorted(features)} come after rows of {sorted(self._features)}; keep to one choice")

    def _order(self) -> tuple[Tensor, list[int]]:
        """Return each row's position in the order of (class, sample id) [n], and the number of rows of every class."""
        if not self._labels:
            raise Refused("no image was measured; add() the features of at least two images a class")
        ids, labels = torch.cat(self._sample_ids), torch.cat(self._labels)
        by_id = ids.argsort(stable=True)
        twice = ids[by_id][1:][ids[by_id].diff() == 0]
        if len(twice):
            raise Refused(f"sample {int(twice[0])} was added twice; give every image to one worker, once")
        counts: list[int] = labels.bincount(minlength=self.num_classes).tolist()
        if min(counts) < 2:
            few = counts.index(min(counts))
            raise Refused(f"class {few} has {counts[few]} of the images measured; a class needs at least 2")
        return by_id[labels[by_id].argsort(stable=True)].argsort(), counts


def _rows(tap: str, features: Tensor, max_elements: int) -> Tensor:
    """Return features [B,...] as float32 rows [B,D] in host memory, maps beyond max_elements max-pooled first."""
    side = _pool_side(tap, features.shape[1:], max_elements)
    pooled = F.max_pool2d(features, side) if side > 1 else features
    rows = pooled.flatten(1).to(device="cpu", dtype=torch.float32, copy=True)
    if not rows.isfinite().all():
        raise Refused(f"tap {tap!r} gives features that are not finite; check the teacher's weights and precision")
    return rows


def _pool_side(tap: str, shape: Sequence[int], max_elements: int) -> int:
    """Return the side p of the p x p max pooling that brings a map [C,H,W] below max_elements; 1 where it is below."""
    elements = math.prod(shape)
    if elements <= max_elements:
        return 1
    side = math.ceil(math.sqrt(elements / max_elements))
    if len(shape) != 3 or side > min(shape[1:]):
        raise Refused(
            f"tap {tap!r} of shape {list(shape)} has {elements} elements, above max_elements={max_elements}, and only "
            "maps are pooled; raise max_elements or leave this tap out"
        )
    return side


def _in_order(chunks: Sequence[Tensor], positions: Tensor) -> Tensor:
    """Return the rows of the chunks [.,D] with row i at positions[i]: [n,D]."""
    ordered = chunks[0].new_empty(len(positions), chunks[0].shape[1])
    for chunk, where in zip(chunks, positions.split([len(c) for c in chunks]), strict=True):
        ordered[where] = chunk
    return ordered


def kept_bytes(shapes: Mapping[str, Sequence[int]], num_samples: int, max_elements: int = MAX_ELEMENTS) -> int:
    """Return the host memory that `LayerQuality` fills: 4 bytes x num_samples x elements of all taps after pooling.

    shapes: {tap: shape without the batch}, as `FeatureTaps.shapes` gives them.
    """
    elements = 0
    for tap, shape in shapes.items():
        side = _pool_side(tap, shape, max_elements)
        elements += math.prod(shape) if side == 1 else shape[0] * (shape[1] // side) * (shape[2] // side)
    return 4 * num_samples * elements


def class_balanced_sample(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return per_class sample ids of every class, ascending: labels [n] by sample id -> [K * per_class] int64.

    A pure function of its arguments: the ids of a class are ranked by the Philox numbers of (seed, id). Refused
    where a class has too few images.
    """
    if per_class < 1:
        raise Refused(f"per_class is {per_class}; take at least 1 image of each class")
    counts = np.bincount(labels)
    if counts.min() < per_class:
        few = int(counts.argmin())
        raise Refused(f"class {few} has {counts[few]} images, fewer than per_class={per_class}; ask for fewer")
    order = np.lexsort((np.random.Philox(key=seed).random_raw(len(labels)), labels))
    firsts = np.cumsum(counts) - counts
    return np.sort(order[(firsts[:, None] + np.arange(per_class)).ravel()])


@dataclass(frozen=True)
class LayerScores:
    """What the teacher's layers have to teach: {tap: Quality}, and the student's taps, both in depth order."""

    quality: Mapping[str, Quality]
    student_taps: Sequence[str]

    def of(self, pairs: Sequence[Mapping[str, str]]) -> float:
        """Return the mean Q of a pairing's teacher taps."""
        return sum(self.quality[pair["teacher"]].q for pair in pairs) / len(pairs)


def recommend_pairs(student_taps: Sequence[str], quality: Mapping[str, Quality], num_pairs: int) -> tuple[Pair, ...]:
    """Return the pairs of a feature-only recipe: the num_pairs teacher taps of highest Q, paired by depth, one to one.

    student_taps and quality are in depth order. So early layers of the student meet late layers of the teacher, where
    Q is high: the source's rule. Of two equal scores the deeper tap wins. With more student taps than pairs, those at
    equal steps of depth are taken, the last always (of 8 for 4 pairs: 1, 3, 5, 7, as the source does for VGG-11).
    Refused where there are too few taps.
    """
    for side, taps in (("student", student_taps), ("teacher", quality)):
        if num_pairs < 1 or len(taps) < num_pairs:
            raise Refused(f"{num_pairs} pairs cannot be made from {len(taps)} {side} taps; ask for 1 to {len(taps)}")
    depth = {tap: number for number, tap in enumerate(quality)}
    best = sorted(quality, key=lambda tap: (quality[tap].q, depth[tap]))[-num_pairs:]
    spread = [student_taps[(k + 1) * len(student_taps) // num_pairs - 1] for k in range(num_pairs)]
    return tuple(
        Pair(student=student, teacher=teacher)
        for student, teacher in zip(spread, sorted(best, key=depth.__getitem__), strict=True)
    )

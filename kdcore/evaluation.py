"""How a network answers on a set of images, as sums: added up over batches, merged over workers, divided at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdcore.metrics import Counts, ranking
from kdcore.multi_label import MultiLabelEvaluation

NUM_BINS = 15
NUM_CONFUSIONS = 20  # pairs of classes taken for each other that a report lists
NUM_CLASSES_SHOWN = 60  # of the confusion matrix in a report: those with the most mistakes
_ROUNDING = 1e-12  # share of a sum of squares: what centring leaves below it is a constant's rounding error


class Evaluation:
    """One network on the images seen so far.

    The metrics of `Counts`, closeness to its teacher, calibration, a per-class table and the confusions of classes. An
    image may have several right answers (ImageNet's ReaL labels): the one that the network finds most probable is then
    its label. An image without any is not counted.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = Counts(num_classes, device)
        self.overlap = torch.zeros((), dtype=torch.float64, device=device)
        self.calibration = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)
        self.mistakes: list[Tensor] = []  # label * num_classes + prediction of every wrong answer

    @torch.no_grad()
    def add(self, logits: Tensor, answers: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits [B,K]; answers [B,M] int64, padded with -1; teacher_logits [B,K] or None."""
        known = answers[:, 0] >= 0
        logits, answers = logits[known].float(), answers[known]
        if not len(logits):
            return
        labels = most_probable(logits, answers)
        if teacher_logits is not None:
            teacher_logits = teacher_logits[known].float()
            self.overlap += overlap(logits, teacher_logits)
        self.counts.add(logits, labels, teacher_logits)
        predictions = ranking(logits)[:, 0]
        correct = predictions == labels
        named = predictions >= 0  # an answer that is not finite names no class
        confidence = logits.softmax(dim=1).gather(1, predictions.clamp_min(0)[:, None])[:, 0]
        confidence = confidence.where(named, 0.0)
        self.calibration += binned(confidence, correct)
        self.mistakes.append((labels * self.num_classes + predictions)[named & ~correct].cpu())

    def merge(self, other: Evaluation) -> None:
        """Take in the sums of another worker."""
        self.counts.merge(other.counts)
        self.overlap += other.overlap
        self.calibration += other.calibration
        self.mistakes += other.mistakes

    def to(self, device: torch.device | str) -> None:
        """Move the sums."""
        self.counts.totals = self.counts.totals.to(device)
        self.overlap, self.calibration = self.overlap.to(device), self.calibration.to(device)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of `Counts`, {ece} and, with a teacher, {agreement_top5}; rates in [0,1]."""
        found = self.counts.result() | {"ece": expected_calibration_error(self.calibration)}
        if self.counts.has_teacher:
            found["agreement_top5"] = float(self.overlap) / found["images"]
        return found

    def per_class(self) -> list[dict[str, float | None]]:
        """Return {images, accuracy, precision} of every class, by number.

        accuracy: the share of its images that are found (recall), None without images; precision: the share of the
        images taken for it that are its own, None if there are none.
        """
        images, correct, taken = *self.counts.by_class.long().tolist(), self.confusion_matrix().sum(dim=0).tolist()
        return [
            {"images": n, "accuracy": right / n if n else None, "precision": right / all_taken if all_taken else None}
            for n, right, all_taken in zip(images, correct, taken, strict=True)
        ]

    def confusion_matrix(self) -> Tensor:
        """Return the number of images of each class (row) taken for each class (column): [K,K] int64, on the host."""
        size = self.num_classes
        codes = torch.cat(self.mistakes) if self.mistakes else torch.zeros(0, dtype=torch.int64)
        return codes.bincount(minlength=size * size).view(size, size) + torch.diag(self.counts.by_class[1].long().cpu())

    def confusions(self, limit: int) -> list[tuple[int, int, int]]:
        """Return the worst pairs as (label, prediction, images), the most frequent first."""
        if not self.mistakes:
            return []
        codes, images = torch.cat(self.mistakes).unique(return_counts=True)
        order = images.argsort(descending=True, stable=True)[:limit]
        pairs = [(code // self.num_classes, code % self.num_classes) for code in codes[order].tolist()]
        return [(*pair, count) for pair, count in zip(pairs, images[order].tolist(), strict=True)]

    def reliability(self) -> list[dict[str, float]]:
        """Return {images, confidence, accuracy} of every bin that has images; means in [0,1]."""
        bins = zip(*self.calibration.tolist(), strict=True)
        return [{"images": n, "confidence": c / n, "accuracy": right / n} for n, c, right in bins if n]


def most_probable(logits: Tensor, answers: Tensor) -> Tensor:
    """Return, of each image's right answers [B,M] (padded with -1), the one with the highest logit: [B]."""
    scores = logits.gather(1, answers.clamp_min(0)).masked_fill(answers < 0, -torch.inf)
    return answers.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]


def overlap(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sum over the images of the share that the five most probable classes of both networks have in common."""
    ours, theirs = ranking(logits), ranking(teacher_logits)
    shared = (ours[:, :, None] == theirs[:, None, :]) & (ours >= 0)[:, :, None]
    return shared.any(dim=2).double().mean(dim=1).sum()


def binned(confidence: Tensor, correct: Tensor) -> Tensor:
    """Return [3, bins]: images, sum of confidence, correct images, by confidence; bin b is (b/bins, (b+1)/bins]."""
    bins = (confidence * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
    values = torch.stack([torch.ones_like(confidence), confidence, correct.to(confidence)]).double()
    return torch.zeros(3, NUM_BINS, dtype=torch.float64, device=confidence.device).index_add_(1, bins, values)


def expected_calibration_error(bins: Tensor) -> float:
    """ECE = sum over bins of (n_b / n) |accuracy_b - confidence_b|, from the sums [3, bins] of `binned`; in [0,1].

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3, with 15 bins of equal width.
    """
    images, confidence, correct = bins
    return float((correct - confidence).abs().sum() / images.sum())


class LinearCKA:
    """Linear centred kernel alignment of taps: for features X [n,p] and Y [n,q] with centred columns,

        CKA(X, Y) = |Y'X|_F^2 / (|X'X|_F |Y'Y|_F)      in [0,1]; 1: equal up to a rotation and a scale.

    Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, equation 5 and its
    form in feature space, which is what is accumulated: the products of all taps' columns, in float64. So the result is
    exact over all images, and depends neither on batches nor on workers. Maps and tokens are averaged over their
    positions first; memory is 8 bytes x (sum of the taps' widths)^2.
    """

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}
        self.images = 0
        self.sums = self.products = torch.zeros(())

    @torch.no_grad()
    def add(self, features: Mapping[str, Tensor]) -> None:
        """Add {tap: features of the same images [B,D], [B,N,D] or [B,C,H,W]}, the same taps every time."""
        columns = {tap: pooled(tensor).double() for tap, tensor in features.items()}
        rows = torch.cat(list(columns.values()), dim=1)
        self._take(len(rows), rows.sum(dim=0), rows.T @ rows, {tap: c.shape[1] for tap, c in columns.items()})

    def merge(self, other: LinearCKA) -> None:
        """Take in the sums of another worker."""
        if other.images:
            self._take(other.images, other.sums, other.products, other.widths)

    def to(self, device: torch.device | str) -> None:
        """Move the sums."""
        self.sums, self.products = self.sums.to(device), self.products.to(device)

    def _take(self, images: int, sums: Tensor, products: Tensor, widths: dict[str, int]) -> None:
        assert self.widths in ({}, widths), "the same taps every time"
        self.sums = self.sums + sums if self.images else sums
        self.products = self.products + products if self.images else products
        self.images, self.widths = self.images + images, widths

    def result(self) -> dict[tuple[str, str], float]:
        """Return {(tap, tap): CKA} of every ordered pair; NaN for a tap that is the same for all images."""
        assert self.images, "no image was added"
        centred = self.products - torch.outer(self.sums, self.sums) / self.images
        split = list(self.widths.values())
        blocks = [rows.split(split, dim=1) for rows in centred.split(split)]
        norms = [[float(block.square().sum()) for block in row] for row in blocks]
        taps = list(self.widths)
        raw = [float(rows.split(split, dim=1)[i].square().sum()) for i, rows in enumerate(self.products.split(split))]
        varies = [norms[i][i] > _ROUNDING**2 * raw[i] for i in range(len(taps))]
        return {
            (one, other): norms[i][j] / (norms[i][i] * norms[j][j]) ** 0.5 if varies[i] and varies[j] else float("nan")
            for i, one in enumerate(taps)
            for j, other in enumerate(taps)
        }


def pooled(features: Tensor) -> Tensor:
    """Return one vector per image [B,D]: maps [B,C,H,W] and tokens [B,N,D] averaged over their positions."""
    if features.ndim == 4:
        return features.float().mean(dim=(2, 3))
    return features.float().mean(dim=1) if features.ndim == 3 else features.float()


def report(
    student: Evaluation | MultiLabelEvaluation | None,
    teacher: Evaluation | MultiLabelEvaluation | None,
    class_names: list[str],
) -> dict[str, Any]:
    """Return all results as plain values for JSON; images with several labels have no calibration and no confusions."""
    networks = {name: one for name, one in (("student", student), ("teacher", teacher)) if one is not None}
    tables = {name: one.per_class() for name, one in networks.items()}
    of_one_label = {name: one for name, one in networks.items() if isinstance(one, Evaluation)}
    return {
        "metrics": {name: one.metrics() for name, one in networks.items()},
        "reliability": {name: one.reliability() for name, one in of_one_label.items()},
        "classes": [
            {"class": class_name, **{network: table[number] for network, table in tables.items()}}
            for number, class_name in enumerate(class_names)
        ],
        "confusions": {
            name: [
                {"label": class_names[label], "prediction": class_names[prediction], "images": images}
                for label, prediction, images in one.confusions(NUM_CONFUSIONS)
            ]
            for name, one in of_one_label.items()
        },
        "confusion_matrix": {
            name: most_confused(one, class_names, NUM_CLASSES_SHOWN) for name, one in of_one_label.items()
        },
    }


def most_confused(network: Evaluation, class_names: list[str], limit: int) -> dict[str, Any]:
    """Return {classes, counts}: the confusion matrix of the classes with the most mistakes, in the classes' order."""
    matrix = network.confusion_matrix()
    mistakes = matrix.sum(dim=0) + matrix.sum(dim=1) - 2 * matrix.diagonal()
    chosen = mistakes.argsort(descending=True, stable=True)[:limit].sort().values
    return {"classes": [class_names[n] for n in chosen.tolist()], "counts": matrix[chosen][:, chosen].tolist()}

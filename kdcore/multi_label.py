"""How a network answers on images with several labels, each class a yes or no: judged by ranks and by a threshold."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.errors import Refused
from kdcore.terms.binary import binary_kl_divergence

THRESHOLD = 0.5  # a class is predicted from this probability on


def average_precision(scores: Tensor, positives: Tensor) -> float:
    """Return sum_n (R_n - R_{n-1}) P_n over the distinct scores, the highest first: in [0,1].

    scores [N]: of one class for N images; positives [N] bool: which images show it, at least one; P_n, R_n: precision
    and recall of the images whose score is not below the n-th. It depends only on the order of the scores; equal
    scores are taken together, as by scikit-learn's `average_precision_score`. No interpolation. A score that is NaN is
    wrong: ranked last if the image shows the class, first if it does not.
    """
    scores = scores.where(~scores.isnan(), torch.where(positives, -torch.inf, torch.inf))
    values, order = scores.double().sort(descending=True)
    found = positives[order].double().cumsum(dim=0)
    last = torch.cat([values[1:] != values[:-1], values.new_ones(1, dtype=torch.bool)])  # of those with equal scores
    found = found[last]
    precision = found / (1 + last.nonzero()[:, 0])
    gained = torch.diff(found, prepend=found.new_zeros(1)) / found[-1]
    return float((gained * precision).sum())


class MultiLabelCounts:
    """Answers to the images seen so far, all of them kept, as ranks are over the whole set.

    Memory: 8 bytes per image and class, 12 with a teacher. It takes the place of `kdcore.metrics.Counts`.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.parts = [torch.zeros(2, 0, num_classes, device=device)]
        self.teacher_parts = [torch.zeros(0, num_classes, device=device)]
        self.has_teacher = False

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits [B,K]; labels [B,K] of 0 and 1; teacher_logits [B,K] or None."""
        self.parts.append(torch.stack([logits.float(), labels.float()]))
        if teacher_logits is not None:
            self.has_teacher = True
            self.teacher_parts.append(teacher_logits.float())

    @property
    def logits(self) -> Tensor:
        """The logits of the images seen so far [n,K]."""
        return torch.cat(self.parts, dim=1)[0]

    @property
    def labels(self) -> Tensor:
        """Their labels [n,K] of 0 and 1."""
        return torch.cat(self.parts, dim=1)[1]

    @property
    def teacher_logits(self) -> Tensor:
        """The teacher's logits [n,K]; empty if it was not asked."""
        return torch.cat(self.teacher_parts)

    def __len__(self) -> int:
        return sum(part.shape[1] for part in self.parts)

    def merge(self, other: MultiLabelCounts) -> None:
        """Take in the answers of another worker."""
        self.parts += [part.to(self.parts[0].device) for part in other.parts]
        self.teacher_parts += [part.to(self.parts[0].device) for part in other.teacher_parts]
        self.has_teacher = self.has_teacher or other.has_teacher

    def to(self, device: torch.device | str) -> None:
        """Move the answers."""
        self.parts = [part.to(device) for part in self.parts]
        self.teacher_parts = [part.to(device) for part in self.teacher_parts]

    def over_ranks(self, share: range, num_images: int, add_up: Callable[[Tensor], Tensor]) -> MultiLabelCounts:
        """Return the answers to all images, the same on every rank.

        share: which of the images this rank has seen, in order; add_up: sums a tensor over ranks.
        """
        assert len(self) == len(share), "a rank has seen its share"
        everyone = MultiLabelCounts(self.parts[0].shape[2], self.parts[0].device)
        mine = [*self.parts[0].new_zeros(2, num_images, self.parts[0].shape[2])]
        mine[0][share.start : share.stop], mine[1][share.start : share.stop] = self.logits, self.labels
        theirs = None
        if self.has_teacher:
            theirs = torch.zeros_like(mine[0])
            theirs[share.start : share.stop] = self.teacher_logits
            add_up(theirs)
        everyone.add(add_up(mine[0]), add_up(mine[1]), theirs)
        return everyone

    def result(self) -> dict[str, float]:
        """Return {images, mAP, f1, nll} and, with a teacher, {agreement, kl}; rates in [0,1], nats per image.

        mAP: the mean of `average_precision` over the classes that some image shows (macro), left out if there are none;
        f1: of all answers from `THRESHOLD` on (micro), 0 where neither a label nor an answer is yes; nll: the sum over
        classes of the binary cross-entropy; agreement: images for which both networks name the same classes, by
        `THRESHOLD`; kl: the sum over classes of D(teacher || student).
        """
        if not len(self):
            raise Refused("no image was counted")
        logits, labels = self.logits, self.labels
        named, shown = logits.sigmoid() >= THRESHOLD, labels > 0
        both = 2 * float((named & shown).sum())
        precisions = [value for value in self.average_precisions() if value is not None]
        found = {
            "images": len(self),
            **({"mAP": sum(precisions) / len(precisions)} if precisions else {}),
            "f1": both / max(1, int(named.sum()) + int(shown.sum())),
            "nll": _mean_over_images(F.binary_cross_entropy_with_logits(logits, labels, reduction="none")),
        }
        if self.has_teacher:
            theirs = self.teacher_logits
            alike = (named == (theirs.sigmoid() >= THRESHOLD)) & ~(logits.isnan() | theirs.isnan())
            found["agreement"] = float(alike.all(dim=1).double().mean())
            found["kl"] = _mean_over_images(binary_kl_divergence(theirs, logits))
        return found

    def average_precisions(self) -> list[float | None]:
        """Return the average precision of every class, by number; None for one that no image shows."""
        logits, shown = self.logits.cpu(), self.labels.cpu() > 0
        pairs = zip(logits.unbind(dim=1), shown.unbind(dim=1), strict=True)
        return [average_precision(scores, positives) if bool(positives.any()) else None for scores, positives in pairs]


def _mean_over_images(values: Tensor) -> float:
    return float(values.double().sum(dim=1).mean())


class MultiLabelEvaluation(MultiLabelCounts):
    """One network on the images seen so far; it takes the place of `kdcore.evaluation.Evaluation`."""

    def add(self, logits: Tensor, answers: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits [B,K]; answers [B,M] int64, padded with -1; teacher_logits [B,K] or None."""
        labels = torch.zeros(len(answers), logits.shape[1] + 1, device=answers.device)
        labels.scatter_(1, answers.remainder(logits.shape[1] + 1), 1.0)  # -1 falls into the column that is cut off
        super().add(logits, labels[:, :-1], teacher_logits)

    def metrics(self) -> dict[str, float]:
        """Return the metrics, as of `MultiLabelCounts.result`."""
        return self.result()

    def per_class(self) -> list[dict[str, float | None]]:
        """Return {images, average_precision, precision, recall} of every class, by number.

        images: those that show it; precision and recall are by `THRESHOLD`; None where there is nothing to divide by.
        """
        named, shown = self.logits.sigmoid() >= THRESHOLD, self.labels > 0
        sums = zip(*((one.sum(dim=0).tolist()) for one in (shown, named, named & shown)), strict=True)
        return [
            {
                "images": images,
                "average_precision": precision,
                "precision": both / answered if answered else None,
                "recall": both / images if images else None,
            }
            for precision, (images, answered, both) in zip(self.average_precisions(), sums, strict=True)
        ]

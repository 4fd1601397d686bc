"""Metrics as counts: added up over batches, summed over ranks, divided once at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.errors import Refused

FIELDS = ("images", "top1", "top5", "nll", "agreement", "kl")


class Counts:
    """Sums over the images seen so far, as one float64 tensor `totals` [6+2K]; ranks merge by adding it.

    top1, top5: correct images; nll: sum of -log q(label) in nats; agreement: images whose most probable class is the
    teacher's; kl: sum of D(teacher || student) in nats at temperature 1. The last two are 0 where no teacher was asked.
    Each class's images and correct images follow.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.totals = torch.zeros(len(FIELDS) + 2 * num_classes, dtype=torch.float64, device=device)
        self.has_teacher = False

    @property
    def sums(self) -> Tensor:
        """The sums of `FIELDS` [6], a view of the totals."""
        return self.totals[: len(FIELDS)]

    @property
    def by_class(self) -> Tensor:
        """The images and the correct images of every class [2,K], a view of the totals."""
        return self.totals[len(FIELDS) :].view(2, -1)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits [B,K]; labels [B] int64; teacher_logits [B,K] or None. Never waits for the device."""
        log_q = F.log_softmax(logits.float(), dim=1)
        top = ranking(logits)
        hits = top == labels[:, None]
        zero = self.totals.new_zeros(())  # made on the device: copying a number from the host would wait for the device
        agreement = kl = zero
        if teacher_logits is not None:
            self.has_teacher = True
            agreement = ((top[:, 0] == ranking(teacher_logits)[:, 0]) & (top[:, 0] >= 0)).sum()
            kl = F.kl_div(log_q, F.log_softmax(teacher_logits.float(), dim=1), reduction="sum", log_target=True)
        images, nll = torch.full_like(zero, len(labels)), F.nll_loss(log_q, labels, reduction="sum")
        sums = (images, hits[:, 0].sum(), hits.sum(), nll, agreement, kl)
        self.sums.add_(torch.stack([one.to(self.totals.dtype) for one in sums]))
        by_class = torch.stack([torch.ones_like(hits[:, 0]), hits[:, 0]]).to(self.totals.dtype)
        self.by_class.index_add_(1, labels, by_class)  # `bincount` would wait for the device

    def merge(self, other: Counts) -> None:
        """Take in the sums of another worker."""
        self.totals += other.totals
        self.has_teacher = self.has_teacher or other.has_teacher

    def result(self) -> dict[str, float]:
        """Return {images, top1, top5, nll, class_mean_top1} and, with a teacher, {agreement, kl}; rates in [0,1], nats.

        class_mean_top1: the mean, over the classes that have images, of the share of them that are correct.
        """
        values = dict(zip(FIELDS, self.sums.tolist(), strict=True))
        images = values.pop("images")
        if images == 0:
            raise Refused("no image was counted")
        if not self.has_teacher:
            del values["agreement"], values["kl"]
        of_class, correct = self.by_class[:, self.by_class[0] > 0]
        means = {name: value / images for name, value in values.items()}
        return {"images": int(images), **means, "class_mean_top1": float((correct / of_class).mean())}


def ranking(logits: Tensor) -> Tensor:
    """Rank the five most probable classes [B,5], or all if there are fewer.

    Low-precision logits often tie, and `argmax` breaks ties differently from `topk`: both networks are ranked by this.
    A row is -1 where an image's largest logit is not finite (NaN if any is): its answer is wrong, and names no class.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return top.masked_fill(logits.amax(dim=1, keepdim=True).isfinite().logical_not(), -1)

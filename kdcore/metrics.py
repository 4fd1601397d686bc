"""Metrics as counts: added up over batches, summed over ranks, divided once at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdcore.errors import Refused

FIELDS = ("images", "top1", "top5", "nll", "agreement", "kl")


class Counts:
    """Sums over the images seen so far, as one float64 tensor `totals` [6]; ranks merge by adding it.

    top1, top5: correct images; nll: sum of -log q(label) in nats; agreement: images whose most probable class is the
    teacher's; kl: sum of D(teacher || student) in nats at temperature 1. The last two are 0 where no teacher was asked.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.totals = torch.zeros(len(FIELDS), dtype=torch.float64, device=device)
        self.has_teacher = False

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Add a batch: logits [B,K]; labels [B] int64; teacher_logits [B,K] or None. The device is not waited for."""
        log_q = F.log_softmax(logits.float(), dim=1)
        top = ranking(logits)
        hits = top == labels[:, None]
        zero = self.totals.new_zeros(())  # made on the device: a number of the host's would be copied, and waited for
        agreement = kl = zero
        if teacher_logits is not None:
            self.has_teacher = True
            agreement = ((top[:, 0] == ranking(teacher_logits)[:, 0]) & (top[:, 0] >= 0)).sum()
            kl = F.kl_div(log_q, F.log_softmax(teacher_logits.float(), dim=1), reduction="sum", log_target=True)
        images, nll = torch.full_like(zero, len(labels)), F.nll_loss(log_q, labels, reduction="sum")
        sums = (images, hits[:, 0].sum(), hits.sum(), nll, agreement, kl)
        self.totals += torch.stack([one.to(self.totals.dtype) for one in sums])

    def merge(self, other: Counts) -> None:
        """Take in the sums of another worker."""
        self.totals += other.totals
        self.has_teacher = self.has_teacher or other.has_teacher

    def result(self) -> dict[str, float]:
        """{images, top1, top5, nll} and, with a teacher, {agreement, kl}; rates in [0,1], means in nats."""
        values = dict(zip(FIELDS, self.totals.tolist(), strict=True))
        images = values.pop("images")
        if images == 0:
            raise Refused("no image was counted")
        if not self.has_teacher:
            del values["agreement"], values["kl"]
        return {"images": int(images), **{name: value / images for name, value in values.items()}}


def ranking(logits: Tensor) -> Tensor:
    """Rank the five most probable classes [B,5], or all if there are fewer.

    Low-precision logits often tie, and `argmax` settles a tie otherwise than `topk`: both networks are ranked by this.
    -1 in the row of an image whose largest logit is not finite (NaN among them): its answer is wrong, and no class.
    """
    top = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return top.masked_fill(logits.amax(dim=1, keepdim=True).isfinite().logical_not(), -1)

"""ReviewKD: each stage of the teacher taught to the student's stages up to it, fused from deep to shallow."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdcore.errors import Refused
from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.features import PairedTerm, as_map, feature_mse
from kdcore.terms.precision import full_precision


@full_precision
def hcl(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the hierarchical context loss: [B], squared feature units.

    The mean squared error of the maps and of their averages over 4x4, 2x2 and 1x1 grids (those smaller than the map),
    with weights 1, 1/2, 1/4, 1/8 divided by their sum. Both [B,C,H,W] of one shape. 0 when student equals teacher.
    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv 2104.09044.
    """
    loss, total, weight = feature_mse(student_map, teacher_map), 1.0, 1.0
    for size in (4, 2, 1):
        if size < min(student_map.shape[2:]):
            weight /= 2
            total += weight
            pooled = [F.adaptive_avg_pool2d(m, size) for m in (student_map, teacher_map)]
            loss = loss + weight * feature_mse(*pooled)
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a stage [B,C,H,W] with what the deeper stages left (the paper's ABF).

    Gives the prediction of the teacher's map and the fused map for the next, shallower stage.
    """

    def __init__(self, student_channels: int, mid_channels: int, teacher_channels: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(
            nn.Conv2d(student_channels, mid_channels, 1, bias=False), nn.BatchNorm2d(mid_channels)
        )
        self.predict = nn.Sequential(
            nn.Conv2d(mid_channels, teacher_channels, 3, padding=1, bias=False), nn.BatchNorm2d(teacher_channels)
        )
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())
        for conv in (self.reduce[0], self.predict[0]):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]

    def forward(self, stage: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the predicted teacher's map and the fused one, both of the given size."""
        fused = self.reduce(stage)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            of_stage, of_deeper = self.attend(torch.cat([fused, deeper], dim=1)).chunk(2, dim=1)
            fused = of_stage * fused + of_deeper * deeper
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        return self.predict(fused), fused


class ReviewKD(PairedTerm):
    """ReviewKD: `hcl` between the teacher's maps and the student's fused ones, summed from shallow to deep.

    The published tables end the pairs with the two classifier inputs, and tap the teacher before the activation where
    the network has such a place. Published: on CIFAR-100 warmup_epochs 20 and one weight per network pair; on ImageNet
    no warm-up, weight 1 (ResNet-34 to 18) or 8 (ResNet-50 to MobileNetV1).
    """

    term: Literal["reviewkd"] = "reviewkd"

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its fusions. Refused for pairs in another order than from shallow to deep."""
        taps, in_order = [pair.student for pair in self.pairs], self.student_taps(context)
        if taps != sorted(taps, key=in_order.index):
            raise Refused(
                f"stages are fused from the last pair to the first, but the student runs {', '.join(in_order)}, and "
                f"the pairs are {', '.join(taps)}; list them in that order, from shallow to deep"
            )
        return ReviewModule(self, context)


class ReviewModule(nn.Module):
    """The fusions of `ReviewKD`, from shallow to deep."""

    def __init__(self, config: ReviewKD, context: TermContext) -> None:
        super().__init__()
        self.config = config
        channels = config.channels(context)
        mid_channels = min(512, channels[-1][0])
        self.fusions = nn.ModuleList(
            Fusion(s, mid_channels, t, deepest=i == len(channels) - 1) for i, (s, t) in enumerate(channels)
        )

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the loss, summed over pairs: [B]."""
        losses, fused = [], None
        for (student, teacher), fusion in reversed(list(zip(self.config.tapped(inputs), self.fusions, strict=True))):
            teacher_map = as_map(teacher)
            predicted, fused = fusion(as_map(student), fused, teacher_map.shape[2:])
            losses.append(hcl(predicted, teacher_map))
        return torch.stack(losses).sum(dim=0)

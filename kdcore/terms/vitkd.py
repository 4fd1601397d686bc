"""ViTKD: shallow blocks mimic the teacher's, the deepest must generate the teacher's tokens from a part of its own."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.errors import Refused
from kdcore.terms.base import Pair, TermContext, TermInputs
from kdcore.terms.checks import require_same_shape
from kdcore.terms.draws import DrawingTerm, DrawSource
from kdcore.terms.features import PairedTerm
from kdcore.terms.precision import at_least_float32, full_precision

SHALLOW = (Pair(student="blocks.0", teacher="blocks.0"), Pair(student="blocks.1", teacher="blocks.1"))
DEEP = Pair(student="forward_features", teacher="forward_features")


@full_precision
def mimicking(student_tokens: Tensor, teacher_tokens: Tensor) -> Tensor:
    """Return the sum over tokens and width of (student - teacher)^2: [B], squared feature units.

    Both [B,N,D], the student's already of the teacher's width. 0 when student equals teacher.
    Source: Yang et al., "ViTKD: Practical Guidelines for ViT Feature Knowledge Distillation", arXiv 2209.02432; the
    sums, and those of `generation`, are those of the authors' code.
    """
    require_same_shape(student_tokens, teacher_tokens)
    return (student_tokens - teacher_tokens).square().sum(dim=(1, 2))


@full_precision
def generation(generated_tokens: Tensor, teacher_tokens: Tensor, masked: Tensor, mask_ratio: float) -> Tensor:
    """Return the sum over the masked tokens of (generated - teacher)^2, divided by mask_ratio: [B].

    Both [B,N,D]; masked [B,N] bool; in squared feature units. 0 when the generated tokens equal the teacher's.
    Source: as for `mimicking`.
    """
    require_same_shape(generated_tokens, teacher_tokens)
    errors = (generated_tokens - teacher_tokens).square().sum(dim=2)
    return (errors * masked).sum(dim=1) / mask_ratio


class ViTKD(DrawingTerm, PairedTerm):
    """ViTKD: shallow blocks mimic the teacher's, the deepest must generate its tokens.

    mimic_weight * `mimicking`, summed over the shallow pairs, + generation_weight * `generation` of the deep one.

    Between plain vision transformers with one grid of patches. Prefix tokens (class, distillation, register tokens) are
    dropped on both sides; linear layers bring the student to the teacher's width where they differ. The published
    tables have the weights given as defaults, and 1 for the term; the deep tap is after the final norm.
    """

    term: Literal["vitkd"] = "vitkd"
    pairs: tuple[Pair, ...] = Field(default=SHALLOW, min_length=1)
    """Shallow blocks whose tokens the student mimics."""
    deep: Pair = DEEP
    """The deep taps: the student's tokens, from a part of which the teacher's are generated."""
    mimic_weight: float = Field(default=3e-5, ge=0)
    """Factor of the part on shallow blocks."""
    generation_weight: float = Field(default=3e-6, ge=0)
    """Factor of the part on the deep tap."""
    mask_ratio: float = Field(default=0.5, gt=0, lt=1)
    """Share of the deep tokens that are masked."""
    student_prefix_tokens: int = Field(default=1, ge=0)
    """Tokens of the student in front of the patches: class, distillation and register tokens."""
    teacher_prefix_tokens: int = Field(default=1, ge=0)
    """Tokens of the teacher in front of the patches, likewise."""

    def needs(self) -> Needs:
        """Return what this term reads: the taps of its pairs, and which samples they are of."""
        deep = Needs(student_taps=frozenset({self.deep.student}), teacher_taps=frozenset({self.deep.teacher}))
        return super().needs() | deep | Needs(sample_ids=True)

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its alignments, mask token and convolutions."""
        return ViTKDModule(self, context)


class ViTKDModule(nn.Module):
    """The alignments of `ViTKD`, its mask token, and the two convolutions that generate."""

    def __init__(self, config: ViTKD, context: TermContext) -> None:
        super().__init__()
        self.config = config
        self.source = DrawSource.of(config, context)
        shapes = [(context.student_shapes[p.student], context.teacher_shapes[p.teacher]) for p in config.pairs]
        student_shape, teacher_shape = (
            context.student_shapes[config.deep.student],
            context.teacher_shapes[config.deep.teacher],
        )
        self.side = _grid_side(student_shape, config.student_prefix_tokens)
        if self.side != _grid_side(teacher_shape, config.teacher_prefix_tokens):
            raise Refused(
                f"vitkd needs one grid of patches, but the student's tokens are {list(student_shape)} and the "
                f"teacher's {list(teacher_shape)}; choose networks of equal image and patch "
                "size, and give *_prefix_tokens"
            )
        width = teacher_shape[1]
        self.mimics = nn.ModuleList(_alignment(s[1], t[1]) for s, t in shapes)
        self.align = _alignment(student_shape[1], width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.generate = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the weighted sum of both parts: [B]."""
        config = self.config
        mimicked = [
            mimicking(align(student[:, config.student_prefix_tokens :]), teacher[:, config.teacher_prefix_tokens :])
            for (student, teacher), align in zip(config.tapped(inputs), self.mimics, strict=True)
        ]
        student = inputs.student_features[config.deep.student][:, config.student_prefix_tokens :]
        teacher = inputs.teacher.features[config.deep.teacher][:, config.teacher_prefix_tokens :]
        masked = self.draw_mask(inputs)
        generated = self.generated(self.align(student), masked)
        return config.mimic_weight * torch.stack(mimicked).sum(dim=0) + config.generation_weight * generation(
            generated, teacher, masked, config.mask_ratio
        )

    def draw_mask(self, inputs: TermInputs) -> Tensor:
        """Draw which tokens are masked, the same number in each row: [B,N] bool."""
        num_tokens = self.side**2
        num_kept = int(num_tokens * (1 - self.config.mask_ratio))
        return self.source.draws(inputs).order(num_tokens) >= num_kept

    def generated(self, tokens: Tensor, masked: Tensor) -> Tensor:
        """Replace the masked tokens of [B,N,D] and pass them through the convolutions over the grid: [B,N,D]."""
        tokens = torch.where(masked[:, :, None], self.mask_token, at_least_float32(tokens))
        grid = tokens.transpose(1, 2).unflatten(2, (self.side, self.side))
        return self.generate(grid).flatten(2).transpose(1, 2)


def _alignment(student_width: int, teacher_width: int) -> nn.Module:
    return nn.Identity() if student_width == teacher_width else nn.Linear(student_width, teacher_width)


def _grid_side(shape: torch.Size, prefix_tokens: int) -> int:
    if len(shape) != 2 or math.isqrt(max(shape[0] - prefix_tokens, 0)) ** 2 != shape[0] - prefix_tokens:
        raise Refused(
            f"vitkd needs tokens [N,D] of a square grid behind {prefix_tokens} prefix tokens, got {list(shape)}; tap "
            "blocks of a plain vision transformer and give *_prefix_tokens"
        )
    return math.isqrt(shape[0] - prefix_tokens)

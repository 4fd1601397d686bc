"""DiffKD: the student's feature is treated as a noisy copy of the teacher's and denoised before the two are compared.

Source: Huang et al., "Knowledge Diffusion for Distillation", NeurIPS 2023, arXiv 2305.15712, and the authors' code,
whose networks these are. On logits (`diffkd_logits`) it is the same method on 1x1 maps of K channels, with a comparison
by divergence.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdcore.batch import Needs
from kdcore.terms.base import TermContext, TermInputs
from kdcore.terms.draws import DrawingTerm, DrawSource
from kdcore.terms.features import aligned_maps, as_map, feature_mse, num_channels
from kdcore.terms.logits import kd
from kdcore.terms.precision import at_least_float32

NUM_TIMES = 1000  # of the diffusion, with a linear schedule from 1e-4 to 0.02


def signal_shares() -> Tensor:
    """Return the share of signal in the variance at each time, DDPM's cumulative product of 1 - beta: [NUM_TIMES]."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, NUM_TIMES), dim=0)


def add_noise(clean: Tensor, noise: Tensor, shares: Tensor) -> Tensor:
    """Return sqrt(share) * clean + sqrt(1 - share) * noise: [B,C,H,W], shares [B]."""
    shares = shares.view(-1, 1, 1, 1)
    return shares.sqrt() * clean + (1 - shares).sqrt() * noise


def ddim_step(noisy: Tensor, noise: Tensor, share: Tensor, next_share: Tensor) -> Tensor:
    """Take one deterministic step to less noise: the clean map that `noise` implies, noised again to next_share.

    Source: Song, Meng, Ermon, "Denoising Diffusion Implicit Models", arXiv 2010.02502, equation 12 with sigma = 0.
    """
    clean = (noisy - (1 - share).sqrt() * noise) / share.sqrt()
    return next_share.sqrt() * clean + (1 - next_share).sqrt() * noise


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm around a narrow middle, added to their input."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        middle = max(1, channels // reduction)
        self.block = nn.Sequential(
            *_conv_bn(channels, middle),
            nn.ReLU(),
            *_conv_bn(middle, middle, 3),
            nn.ReLU(),
            *_conv_bn(middle, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        return x + self.block(x)


def _conv_bn(inputs: int, outputs: int, size: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.BatchNorm2d(outputs)]


def _noise_network(channels: int, spatial: bool) -> nn.Sequential:
    if spatial:
        return nn.Sequential(Bottleneck(channels, 4), Bottleneck(channels, 4), *_conv_bn(channels, channels))
    wide = 4 * channels
    return nn.Sequential(
        *_conv_bn(channels, wide),
        nn.ReLU(),
        *_conv_bn(wide, channels),
        *_conv_bn(channels, wide),
        nn.ReLU(),
        nn.Conv2d(wide, channels, 1),
    )


def _match_network(channels: int, spatial: bool) -> nn.Sequential:
    if spatial:
        layers: list[nn.Module] = [Bottleneck(channels, 8), nn.AdaptiveAvgPool2d(1)]
    else:
        layers = [*_conv_bn(channels, 2 * channels), nn.ReLU(), *_conv_bn(2 * channels, channels)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 2), nn.Softmax(dim=1))


class Denoiser(nn.Module):
    """Refines a student's map and learns the noise of the teacher's; both [B,C,H,W] of one shape.

    spatial: with 3x3 convolutions; without, for 1x1 maps.
    """

    shares: Tensor

    def __init__(self, channels: int, spatial: bool, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.times = nn.Embedding(NUM_TIMES, channels)
        self.noise_of = _noise_network(channels, spatial)
        self.match = _match_network(channels, spatial)
        self.finish = nn.Sequential(*_conv_bn(channels, channels))
        self.register_buffer("shares", signal_shares(), persistent=False)

    def predict_noise(self, noisy: Tensor, times: Tensor) -> Tensor:
        """Predict the noise in a noised map [B,C,H,W] at times [B]."""
        return self.noise_of(noisy + self.times(times)[:, :, None, None])

    def refine(self, student_map: Tensor, noise: Tensor) -> Tensor:
        """Bring the student's map to a learned level of noise, and denoise it in num_steps from mid-schedule down."""
        level = self.match(student_map)[:, :1, None, None]
        noisy = level * student_map + (1 - level) * noise
        stride = NUM_TIMES // (2 * self.num_steps)
        for time in range((self.num_steps - 1) * stride, -1, -stride):
            predicted = self.predict_noise(noisy, torch.full((len(noisy),), time, device=noisy.device))
            next_share = self.shares[time - stride] if time >= stride else torch.ones_like(self.shares[0])
            noisy = ddim_step(noisy, predicted, self.shares[time], next_share)
        return self.finish(noisy)

    def noise_loss(self, teacher_map: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Return the mean squared error of the noise predicted in a noised teacher's map: [B]."""
        noisy = add_noise(teacher_map, noise, self.shares[times])
        return feature_mse(self.predict_noise(noisy, times), noise)

    def forward(
        self, student_map: Tensor, teacher_map: Tensor, inputs: TermInputs, source: DrawSource
    ) -> tuple[Tensor, Tensor]:
        """Return the refined student's map, and `noise_loss` [B] at a random time per sample."""
        count = student_map[0].numel()
        student_noise, teacher_noise = (
            source.draws(inputs, stream).normals(count).view_as(student_map) for stream in (0, 1)
        )
        times = source.draws(inputs, 2).integers(NUM_TIMES)
        return self.refine(student_map, student_noise), self.noise_loss(teacher_map, teacher_noise, times)


class DiffKD(DrawingTerm):
    """DiffKD on maps: the student's is denoised before it is compared with the teacher's.

    MSE(refined student, teacher) + noise prediction on the teacher + its autoencoder's MSE, each of weight 1.

    On the last maps, the larger pooled to the smaller. The latent of the autoencoder (1x1 convolution and batch norm;
    1x1 convolution) is the target and is not trained by the comparison; the published ImageNet runs have 1024 channels.
    Not 0 when student equals teacher: the refinement passes through noise, a function of `seed`, the epoch and the
    sample. Batch norms see only the micro-batch.
    """

    term: Literal["diffkd"] = "diffkd"
    student_tap: str = "forward_features"
    """Tap of the student that gives a map."""
    teacher_tap: str = "forward_features"
    """Tap of the teacher that gives a map."""
    latent_channels: int | None = Field(default=None, ge=1)
    """Channels to which an autoencoder compresses the teacher's map. Not given: no autoencoder."""
    num_steps: int = Field(default=5, ge=1, le=NUM_TIMES // 2)
    """Steps in which the student's map is denoised."""

    def needs(self) -> Needs:
        """Return what this term reads: one map of each network, and which samples they are of."""
        return Needs(
            student_taps=frozenset({self.student_tap}), teacher_taps=frozenset({self.teacher_tap}), sample_ids=True
        )

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its networks."""
        return DiffKDModule(self, context)


class DiffKDModule(nn.Module):
    """The networks of `DiffKD`: projection, autoencoder, denoiser."""

    def __init__(self, config: DiffKD, context: TermContext) -> None:
        super().__init__()
        self.config = config
        self.source = DrawSource.of(config, context)
        teacher_channels = num_channels(context.teacher_shapes[config.teacher_tap])
        channels = config.latent_channels or teacher_channels
        self.project = nn.Conv2d(num_channels(context.student_shapes[config.student_tap]), channels, 1)
        self.encode = nn.Sequential(*_conv_bn(teacher_channels, channels)) if config.latent_channels else None
        self.decode = nn.Conv2d(channels, teacher_channels, 1) if config.latent_channels else None
        self.denoiser = Denoiser(channels, spatial=True, num_steps=config.num_steps)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the sum of the three parts: [B]."""
        student_map, teacher_map = aligned_maps(
            inputs.student_features[self.config.student_tap], inputs.teacher.features[self.config.teacher_tap]
        )
        target, reconstruction = self.compress(at_least_float32(teacher_map))
        projected = at_least_float32(self.project(student_map))
        refined, noise_loss = self.denoiser(projected, target, inputs, self.source)
        return feature_mse(refined, target) + noise_loss + reconstruction

    def compress(self, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target, and the autoencoder's error [B] (0 without one)."""
        if self.encode is None or self.decode is None:
            return teacher_map, teacher_map.new_zeros(len(teacher_map))
        latent = self.encode(teacher_map)
        return at_least_float32(latent.detach()), feature_mse(self.decode(latent), teacher_map)


class DiffKDLogits(DrawingTerm):
    """DiffKD on logits: the student's are denoised before they are compared with the teacher's.

    D(teacher || refined student) at temperature 1 + noise prediction on the teacher's logits, each of weight 1.

    The logits are 1x1 maps of K channels; otherwise as `DiffKD`, without an autoencoder.
    """

    term: Literal["diffkd_logits"] = "diffkd_logits"
    num_steps: int = Field(default=5, ge=1, le=NUM_TIMES // 2)
    """Steps in which the student's logits are denoised."""

    def needs(self) -> Needs:
        """Return what this term reads: the teacher's logits, and which samples they are of."""
        return Needs(teacher_logits=True, sample_ids=True)

    def build(self, context: TermContext) -> nn.Module:
        """Build the term with its networks."""
        return DiffKDLogitsModule(self, context)


class DiffKDLogitsModule(nn.Module):
    """The networks of `DiffKDLogits`: projection and denoiser."""

    def __init__(self, config: DiffKDLogits, context: TermContext) -> None:
        super().__init__()
        self.config = config
        self.source = DrawSource.of(config, context)
        self.project = nn.Conv2d(context.num_classes, context.num_classes, 1)
        self.denoiser = Denoiser(context.num_classes, spatial=False, num_steps=config.num_steps)

    def forward(self, inputs: TermInputs) -> Tensor:
        """Return the sum of both parts: [B]."""
        projected = at_least_float32(self.project(as_map(inputs.student_logits)))
        target = as_map(at_least_float32(inputs.teacher_logits))
        refined, noise_loss = self.denoiser(projected, target, inputs, self.source)
        return kd(refined.flatten(1), target.flatten(1), 1.0) + noise_loss
